"""Objectives of pretraining at equal processor seconds: which one gives the best frozen encoder?

    python benchmarks/objective.py CORPUS ROOT --out DIR [--seconds 75] [--seeds 5] [--minutes 60] [--arm NAME ...] [--json]

CORPUS: a corpus made by `usfmae prepare` from data sets that are no benchmark (here everything at hand but BUS-BRA and
MMOTU-2D). ROOT holds `bus_bra/` and `mmotu_2d/`. Every arm gets the same processor seconds of one thread, teacher
included; steps are seconds / (seconds of a step, measured first), so that each schedule ends at its end. A finished run
is kept below DIR, and a call that was cut goes on. Endpoints, fixed beforehand: BUS-BRA AUROC and MMOTU-2D balanced
accuracy of a logistic regression on mean-pooled frozen features (official or grouped folds, never a test part chosen on),
and the effective rank of the BUS-BRA features. Prints one JSON object: each run, means, and paired differences to
`paper` over seeds with t intervals, also corrected for the number of arms (Bonferroni).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from usfmae.core.bench import encoders
from usfmae.core.bench.features import features
from usfmae.core.bench.metrics import measures
from usfmae.core.bench.probe import probe
from usfmae.core.bench.tasks import load as load_task
from usfmae.core.checkpoint import encoder_of, load, save
from usfmae.core.checkpoint_header import describe
from usfmae.core.config import TrainSettings
from usfmae.core.config.bench import BenchSettings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.mae.model import MaskedAutoencoder, fresh
from usfmae.core.mae.presets import TRIAL, configure
from usfmae.core.mae.targets import student
from usfmae.core.mae.train import TrainPlan, train

SETTINGS = configure("tiny", beneath=TRIAL)
TASKS = {"bus-bra": ("bus_bra", "auroc"), "mmotu-2d": ("mmotu_2d", "balanced_accuracy")}
NORM = {"mask_ratio": 0.75, "norm_pix": True}
LATENTS = {**NORM, "target": "latents"}
ARMS: dict[str, dict[str, Any]] = {
    "paper: pixels 25 %": {"mask_ratio": 0.25, "norm_pix": False},
    "pixels 75 %": {"mask_ratio": 0.75, "norm_pix": False},
    "normalised 50 %": {"mask_ratio": 0.5, "norm_pix": True},
    "normalised 75 %": NORM,
    "normalised 90 %": {"mask_ratio": 0.9, "norm_pix": True},
    "normalised 75 %, Muon": {**NORM, "optimizer": "muon"},
    "latents 75 %, fresh student": LATENTS,
    "latents 75 %, student from teacher": LATENTS,
    "latents 50 %, student from teacher": {**LATENTS, "mask_ratio": 0.5},
    "mixture 75 %, student from teacher": {**NORM, "target": "mixture"},
    "latents 75 %, student from teacher, Muon": {**LATENTS, "optimizer": "muon"},
}
CALIBRATED = 12  # steps that are timed to know how many fit


def recipe(arm: str, seed: int) -> TrainSettings:
    changed = {"seed": seed, "keep": 1, "precision": "fp32", "lr": 1e-3, **ARMS[arm]}
    return TrainSettings.model_validate({**SETTINGS.train.model_dump(), **changed})


def trained(model: MaskedAutoencoder, corpus: Corpus, settings: TrainSettings, seconds: float) -> int:
    """Train for so many processor seconds, on a copy first to learn what a step costs; returns the steps."""
    positions = corpus.split(0.1, 0)[0]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, corpus, settings, TrainPlan(positions, 2))
    began = time.process_time()
    train(model, corpus, settings, TrainPlan(positions, CALIBRATED))
    steps = max(CALIBRATED, int(seconds * CALIBRATED / (time.process_time() - began)))
    model.load_state_dict(weights)
    train(model, corpus, settings, TrainPlan(positions, steps))
    return steps


def run(arm: str, seed: int, corpus: Corpus, out: Path, seconds: float) -> Path:
    """One arm's checkpoint; kept when it is whole."""
    path = out / f"{arm.replace(' ', '-').replace(',', '').replace(':', '')}-{seed}-{seconds:.0f}.safetensors"
    if path.exists():
        return path
    settings, model, began = recipe(arm, seed), SETTINGS.model, time.process_time()
    if settings.target == "pixels":
        network = fresh(model, settings.mask_ratio, settings.norm_pix, seed)
        steps = trained(network, corpus, settings, seconds)
    else:
        # The teacher takes half of the seconds; it is the same for all arms of a seed, and counted in each.
        teacher = run_teacher(seed, corpus, out, seconds / 2)
        network = student(model, settings, encoder_of(teacher), model)
        if "from teacher" in arm:
            network.load_state_dict({**network.state_dict(), **encoder_of(teacher)})
        steps = trained(network, corpus, settings, seconds / 2)
    facts = {"steps": steps, "seconds": round(time.process_time() - began, 1), "arm": arm, "seed": seed}
    path.with_suffix(".json").write_text(json.dumps(facts))
    plain = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("decoder_latent")}
    save(path, plain, describe(model, settings))
    return path


def run_teacher(seed: int, corpus: Corpus, out: Path, seconds: float) -> dict[str, torch.Tensor]:
    path = out / f"teacher-{seed}-{seconds:.0f}.safetensors"
    if not path.exists():
        settings = recipe("normalised 75 %", seed)
        network = fresh(SETTINGS.model, settings.mask_ratio, settings.norm_pix, seed)
        trained(network, corpus, settings, seconds)
        save(path, network.state_dict(), describe(SETTINGS.model, settings))
    return load(path).tensors


def scored(spec: str, root: Path, out: Path) -> dict[str, float]:
    """The endpoints of one checkpoint."""
    result: dict[str, float] = {}
    for name, (folder, measure) in TASKS.items():
        task = load_task(name, root / folder)
        values = features(encoders.load(spec, "mean"), task, 64, out / "features")[0]
        predictions = probe(task, values, BenchSettings(), curve=False).predictions["logistic"]
        result[f"{name} {measure}"] = float(measures(predictions)[measure])
        if name == "bus-bra":
            result["effective rank"] = effective_rank(values)
    return result


def effective_rank(values: np.ndarray) -> float:
    """exp of the entropy of the shares of variance (Roy and Vetterli 2007)."""
    spread = np.linalg.svd(values - values.mean(axis=0), compute_uv=False) ** 2
    shares = spread[spread > 0] / spread.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def compared(scores: dict[str, dict[int, dict[str, float]]]) -> dict[str, Any]:
    """Means over seeds, and differences to the paper's recipe paired by seed, with 95 % t intervals."""
    reference = "paper: pixels 25 %"
    result: dict[str, Any] = {}
    for arm, by_seed in scores.items():
        row: dict[str, Any] = {"seeds": sorted(by_seed)}
        for measure in next(iter(by_seed.values())):
            values = np.array([by_seed[seed][measure] for seed in sorted(by_seed)])
            row[measure] = {"mean": round(float(values.mean()), 4), "runs": [round(float(v), 4) for v in values]}
            shared = sorted(set(by_seed) & set(scores.get(reference, {})))
            if arm != reference and len(shared) >= 2:
                paired = np.array([by_seed[s][measure] - scores[reference][s][measure] for s in shared])
                error = paired.std(ddof=1) / len(shared) ** 0.5
                for label, level in (("interval", 0.975), ("corrected", 1 - 0.025 / max(1, len(scores) - 1))):
                    width = float(stats.t.ppf(level, len(shared) - 1)) * error
                    row[measure][label] = [
                        round(float(paired.mean() - width), 4),
                        round(float(paired.mean() + width), 4),
                    ]
                row[measure]["difference"] = round(float(paired.mean()), 4)
        result[arm] = row
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=75.0, help="processor seconds of each run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after this time; call again")
    parser.add_argument("--arm", choices=ARMS, action="append", help="only these")
    parser.add_argument("--json", action="store_true", help="print JSON (the only form there is)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    corpus, end = Corpus([options.corpus]), time.monotonic() + 60 * options.minutes
    paths: dict[str, dict[int, Path]] = {}
    for seed in range(options.seeds):
        for arm in options.arm or ARMS:
            if time.monotonic() < end:
                paths.setdefault(arm, {})[seed] = run(arm, seed, corpus, options.out, options.seconds)
    scores = {
        arm: {s: scored(str(p), options.root, options.out) for s, p in runs.items()} for arm, runs in paths.items()
    }
    scores["random weights"] = {
        seed: scored(f"random:{path}@{seed}", options.root, options.out)
        for seed, path in next(iter(paths.values())).items()
    }
    print(json.dumps({"images": len(corpus.ids), "seconds": options.seconds, "arms": compared(scores)}, indent=1))


if __name__ == "__main__":
    main()
