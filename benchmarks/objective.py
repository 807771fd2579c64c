"""Objectives of pretraining at equal processor seconds: which one gives the best frozen encoder?

    python benchmarks/objective.py CORPUS ROOT --out DIR [--part choose] [--first 100] [--seeds 1] [--seconds 60]
        [--encoder trial] [--arm NAME ...] [--minutes 60] [--report] [--plot FILE] [--json]

CORPUS: a corpus made by `usfmae prepare` from data sets that are no benchmark (everything at hand but BUS-BRA and
MMOTU-2D). ROOT holds `bus_bra/`, `mmotu_2d/`, `pocus_frames/` and `index.csv`. A step of every arm is timed first, in turn, and an arm
gets as many steps as fit into `--seconds` (processor seconds of one thread, a teacher's training included): every
schedule ends at its end, and a busy machine gives nobody more. A finished cell is one JSON file below DIR, and a call
that was cut goes on.

Recipes are chosen with `--part choose` (other patients, other seeds), and the chosen ones measured with
`--part report`. Endpoints, fixed beforehand: AUROC of a logistic regression on mean-pooled frozen features of BUS-BRA
(the first), MMOTU-2D and POCUS (its frames are pretrained on, without labels), the effective rank of the BUS-BRA
features, and the masked loss on BUS-BRA with a decoder that was refitted alike on the corpus. Prints one JSON object:
each cell, means, and paired differences to the paper's recipe: t intervals over seeds, also corrected for the number
of arms (Bonferroni), and bootstrap intervals over patients of the mean over seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from objective_plot import plot
from objective_probes import Probes
from scipy import stats

from usfmae.core.bench.metrics import Predictions, auroc, resampled
from usfmae.core.checkpoint import encoder_of, load, save
from usfmae.core.checkpoint_header import describe
from usfmae.core.config import TrainSettings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.files import replacing
from usfmae.core.mae.evaluation import evaluate
from usfmae.core.mae.model import MaskedAutoencoder, fresh
from usfmae.core.mae.presets import TRIAL, configure
from usfmae.core.mae.refit import Refit, refitted
from usfmae.core.mae.targets import student
from usfmae.core.mae.train import TrainPlan, train

ENCODERS = {
    "trial": TRIAL["model"],
    "vit-tiny": {"image_size": 112, "patch_size": 16, "width": 192, "depth": 12, "heads": 3},  # with tiny's decoder
}


class Chosen:
    """The encoder of this call."""

    settings = configure("tiny", beneath=TRIAL)


REFERENCE, RANDOM = "paper: pixels 25 %", "random weights"
MILD = {"rotation": 15, "two_sided": True, "zoom_min": 0.8, "zoom_max": 1.25}
NORM = {"mask_ratio": 0.75, "norm_pix": True}
LATENTS = {**NORM, "target": "latents"}
MUON = {**NORM, "optimizer": "muon"}
ARMS: dict[str, dict[str, Any]] = {
    REFERENCE: {"mask_ratio": 0.25, "norm_pix": False},
    RANDOM: NORM,
    "normalised 75 %": NORM,
    "normalised 75 %, Muon": MUON,
    "normalised 75 %, mild views": {**NORM, "augment": MILD},
    "latents 75 %, student from teacher": LATENTS,
    "pixels 75 %": {"mask_ratio": 0.75, "norm_pix": False},
    "normalised 50 %": {"mask_ratio": 0.5, "norm_pix": True},
    "normalised 90 %": {"mask_ratio": 0.9, "norm_pix": True},
    "mixture 75 %, student from teacher": {**NORM, "target": "mixture"},
    "normalised 75 %, Muon, mild views": {**MUON, "augment": MILD},
    "normalised 75 %, Muon, rate 3e-3": {**MUON, "lr": 3e-3},
    "normalised 75 %, Muon, batch 32": {**MUON, "batch_size": 32},
    "normalised 90 %, Muon": {**MUON, "mask_ratio": 0.9},
    "normalised 75 %, decoder of two blocks": {**NORM, "decoder_depth": 2},
    "latents 75 %, student from teacher, Muon, mild views": {**LATENTS, "optimizer": "muon", "augment": MILD},
    "paper with Muon": {"mask_ratio": 0.25, "norm_pix": False, "optimizer": "muon"},
    "latents 75 %, fresh student": LATENTS,
    "normalised 25 %": {"mask_ratio": 0.25, "norm_pix": True},
}
TIMED, TURNS = 4, 4  # steps timed at once, and turns over all arms
REFITTED, BATCH = 80, 64  # steps of the decoder that the held-out loss is read with


@dataclass(frozen=True)
class Cell:
    """One arm and seed."""

    arm: str
    seed: int
    seconds: float

    def place(self, out: Path, suffix: str) -> Path:
        plain = "".join(c if c.isalnum() else "-" for c in self.arm)
        return out / f"{plain}-{self.seed}-{self.seconds:.0f}{suffix}"


def recipe(arm: str, seed: int) -> TrainSettings:
    changed = {"seed": seed, "keep": 1, "precision": "fp32", "lr": 1e-3, **ARMS[arm]}
    changed.pop("decoder_depth", None)
    return TrainSettings.model_validate({**Chosen.settings.train.model_dump(), **changed})


def network(arm: str, seed: int, teacher: dict[str, torch.Tensor] | None) -> MaskedAutoencoder:
    """An arm's model before its first step; where a student starts from its teacher, with those weights."""
    settings, depth = recipe(arm, seed), ARMS[arm].get("decoder_depth", Chosen.settings.model.decoder_depth)
    model = Chosen.settings.model.model_copy(update={"decoder_depth": depth})
    made = student(model, settings, teacher, Chosen.settings.model)
    if teacher is not None and "from teacher" in arm:
        made.load_state_dict({**made.state_dict(), **encoder_of(teacher)})
    return made


def step_seconds(corpus: Corpus, out: Path) -> dict[str, float]:
    """Processor seconds of one step of every arm: the smallest of some turns, in each of them all; kept below DIR."""
    path = out / "step-seconds.json"
    measured: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    if not set(ARMS) <= set(measured):
        missing = [REFERENCE, *(arm for arm in ARMS if arm not in measured and arm != REFERENCE)]
        teacher = fresh(Chosen.settings.model, seed=0).state_dict()
        made = {arm: network(arm, 0, None if recipe(arm, 0).target == "pixels" else teacher) for arm in missing}
        turns: dict[str, list[float]] = {arm: [] for arm in missing}
        for _ in range(TURNS):
            for arm, model in made.items():
                began = time.process_time()
                train(model, corpus, recipe(arm, 0), TrainPlan(np.arange(len(corpus)), TIMED))
                turns[arm].append((time.process_time() - began) / TIMED)
        # An arm that was added later is timed against the reference, in the unit of the first time.
        unit = measured.get(REFERENCE, min(turns[REFERENCE])) / min(turns[REFERENCE])
        measured |= {arm: min(values) * unit for arm, values in turns.items() if arm not in measured}
        path.write_text(json.dumps(measured, indent=1))
    return measured


def trained(cell: Cell, corpus: Corpus, out: Path, cost: dict[str, float]) -> dict[str, Any]:
    """Pretrain an arm for its seconds and save it; what was done."""
    settings, began, teacher = recipe(cell.arm, cell.seed), time.process_time(), None
    seconds = cell.seconds
    if settings.target != "pixels":
        # The teacher takes half of the seconds; it is the same for all arms of a seed, and counted in each.
        seconds = cell.seconds / 2
        teacher = teacher_of(Cell("normalised 75 %", cell.seed, seconds), corpus, out, cost)
    model = network(cell.arm, cell.seed, teacher)
    steps = 0 if cell.arm == RANDOM else round(seconds / cost[cell.arm])
    if steps:
        train(model, corpus, settings, TrainPlan(np.arange(len(corpus)), steps))
    plain = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("decoder_latent")}
    save(cell.place(out, ".safetensors"), plain, describe(model.settings, settings))
    return {"steps": steps, "processor_seconds": round(time.process_time() - began, 1)}


def teacher_of(cell: Cell, corpus: Corpus, out: Path, cost: dict[str, float]) -> dict[str, torch.Tensor]:
    path = cell.place(out, "-teacher.safetensors")
    if not path.exists():
        settings = recipe(cell.arm, cell.seed)
        model = network(cell.arm, cell.seed, None)
        steps = round(cell.seconds / cost[cell.arm])
        train(model, corpus, settings, TrainPlan(np.arange(len(corpus)), steps))
        save(path, model.state_dict(), describe(model.settings, settings))
    return load(path).tensors


def held_out_loss(encoder: dict[str, torch.Tensor], corpus: Corpus, measured: Corpus) -> float:
    """Masked loss of normalised patches on BUS-BRA, with a decoder refitted alike for every encoder."""
    settings = recipe("normalised 75 %", 0)
    refit = Refit(Chosen.settings.model, settings, corpus, np.arange(len(corpus)), REFITTED)
    return evaluate(refitted(encoder, refit), measured, np.arange(0, len(measured), 2), settings)


def finished(cell: Cell, corpus: Corpus, probes: Probes, out: Path, part: str) -> None:
    """Train and measure a cell, and write its JSON file."""
    path = cell.place(out, f"-{part}.json")
    if path.exists():
        return
    cost = step_seconds(corpus, out)
    done = {} if cell.place(out, ".safetensors").exists() else trained(cell, corpus, out, cost)
    figures, predictions = probes.read(str(cell.place(out, ".safetensors")), part)
    encoder = load(cell.place(out, ".safetensors")).tensors
    figures["held-out loss"] = held_out_loss(encoder, corpus, held_out(probes, out))
    said = {
        name: {"labels": p.labels.tolist(), "probabilities": np.round(p.probabilities, 5).tolist(), "groups": p.groups}
        for name, p in predictions.items()
    }
    content = {"arm": cell.arm, "seed": cell.seed, "seconds": cell.seconds, "part": part, **done, "figures": figures}
    with replacing(path) as partial:
        partial.write_text(json.dumps({**content, "predictions": said}))


def held_out(probes: Probes, out: Path) -> Corpus:
    """BUS-BRA's pictures, which nothing here is pretrained on, as a corpus."""
    root = out / "held-out"
    if not list(root.glob("shards/*.json")):
        pixels = probes.pixels["bus-bra"]
        write_shard(root, "all", [PackedImage(p.squeeze(-1), f"{i}", f"{i}") for i, p in enumerate(pixels)])
    return Corpus([root], verify=False)


def cells(out: Path, part: str, seconds: float) -> list[dict[str, Any]]:
    done = [json.loads(path.read_text()) for path in sorted(out.glob(f"*-{seconds:.0f}-{part}.json"))]
    return sorted(done, key=lambda cell: (list(ARMS).index(cell["arm"]), cell["seed"]))


def compared(done: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and differences to the paper's recipe paired by seed."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for cell in done:
        by_arm.setdefault(cell["arm"], {})[cell["seed"]] = cell
    rivals = max(1, len(by_arm) - 2)  # arms beside the reference and random weights
    return {arm: _row(arm, by_seed, by_arm.get(REFERENCE, {}), rivals) for arm, by_seed in by_arm.items()}


def _row(
    arm: str, by_seed: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]], rivals: int
) -> dict[str, Any]:
    steps = next((cell["steps"] for cell in by_seed.values() if "steps" in cell), None)
    row: dict[str, Any] = {"seeds": sorted(by_seed), "steps": steps}
    shared = sorted(set(by_seed) & set(reference))
    for measure in next(iter(by_seed.values()))["figures"]:
        values = [by_seed[seed]["figures"][measure] for seed in sorted(by_seed)]
        row[measure] = {"mean": round(float(np.mean(values)), 4), "runs": [round(float(v), 4) for v in values]}
        if arm != REFERENCE and len(shared) >= 2:
            paired = np.array([by_seed[s]["figures"][measure] - reference[s]["figures"][measure] for s in shared])
            row[measure]["difference"] = _interval(paired, rivals)
    if arm != REFERENCE and shared:
        row["bus-bra AUROC"]["difference over patients"] = _over_patients(
            [by_seed[s] for s in shared], [reference[s] for s in shared]
        )
    return row


def _interval(paired: np.ndarray, rivals: int) -> dict[str, Any]:
    error, freedom = paired.std(ddof=1) / len(paired) ** 0.5, len(paired) - 1
    widths = {"95 %": 0.975, "corrected": 1 - 0.025 / rivals}
    spread = {name: float(stats.t.ppf(level, freedom)) * error for name, level in widths.items()}
    mean = float(paired.mean())
    return {"mean": round(mean, 4), **{n: [round(mean - w, 4), round(mean + w, 4)] for n, w in spread.items()}}


def _over_patients(arm: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Difference of the mean AUROC over seeds, resampling patients: what other patients could have shown."""
    pairs = [(_predictions(a), _predictions(r)) for a, r in zip(arm, reference, strict=True)]
    weights = resampled(pairs[0][0].groups, 1000, 0)
    drawn = np.mean([auroc(a, weights) - auroc(r, weights) for a, r in pairs], axis=0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"95 %": [round(float(low), 4), round(float(high), 4)]}


def _predictions(cell: dict[str, Any]) -> Predictions:
    said = cell["predictions"]["bus-bra"]
    return Predictions(np.array(said["labels"]), np.array(said["probabilities"]), tuple(said["groups"]), (), ())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=("choose", "report"), default="choose", help="patients that are probed")
    parser.add_argument("--seconds", type=float, default=60.0, help="processor seconds of each cell's training")
    parser.add_argument("--first", type=int, default=100, help="number of the first seed")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--encoder", choices=ENCODERS, default="trial", help="a folder of its own (--out) for each")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no cell after this time; call again")
    parser.add_argument("--arm", choices=ARMS, action="append", help="only these")
    parser.add_argument("--report", action="store_true", help="run nothing: report the finished cells")
    parser.add_argument("--plot", type=Path, help="also write the picture (SVG)")
    parser.add_argument("--json", action="store_true", help="print JSON (the only form there is)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    Chosen.settings = configure("tiny", beneath={"model": ENCODERS[options.encoder]})
    options.out.mkdir(parents=True, exist_ok=True)
    corpus, end = Corpus([options.corpus]), time.monotonic() + 60 * options.minutes
    if not options.report:
        probes = Probes(options.root, Chosen.settings.model.image_size)
        for seed in range(options.first, options.first + options.seeds):
            for arm in options.arm or ARMS:
                if time.monotonic() < end:
                    finished(Cell(arm, seed, options.seconds), corpus, probes, options.out, options.part)
    done = cells(options.out, options.part, options.seconds)
    report = {
        "encoder": options.encoder,
        "part": options.part,
        "images": len(corpus),
        "seconds": options.seconds,
        "arms": compared(done),
    }
    if options.plot:
        options.plot.write_text(plot(report))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
