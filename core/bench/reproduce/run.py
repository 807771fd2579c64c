"""OpenUS-46 on disk -> corpus -> leak audit -> pretraining -> probes -> fine-tuning -> one report, step by step.

A step writes `steps/NAME.json` when it is done, with the recipe it was done for; the same recipe is not done again.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from usfmae.core.bench import encoders
from usfmae.core.bench.evaluate import described, finetuned, paired, probed, safe_name, save_json, save_predictions
from usfmae.core.bench.features import images_id, squares
from usfmae.core.bench.reproduce.plan import Plan, Report, Steps
from usfmae.core.bench.tasks.base import BenchmarkTask
from usfmae.core.config import Settings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.openus46.archive import Entry
from usfmae.core.openus46.layout import Found, group_of
from usfmae.core.openus46.leak import enforce, same_pictures
from usfmae.core.prepare.progress import Progress
from usfmae.core.prepare.run import recipe_settings
from usfmae.core.types import recipe_id

Watched = Callable[[], AbstractContextManager[Progress | None]]  # shows how the reading of scans goes on


@dataclass(frozen=True)
class Workplace:
    """Where the results of a reproduction lie, and how its scans are read."""

    out: Path
    workers: int = 1
    watched: Watched = nullcontext


def reproduce(plan: Plan, workplace: Workplace, report: Report) -> dict[str, Any]:
    """Do every step of a plan that is not done, and return all results. Raises SourceError on a leak."""
    workplace = replace(workplace, out=workplace.out.absolute())
    out = workplace.out
    steps = Steps(out / "steps", report)
    sets = [_data_set(plan, data_set, steps, workplace) for data_set in plan.usable]
    roots = [Path(data_set["root"]) for data_set in sets if data_set["images"]]
    fingerprint = Corpus(roots, verify=False).fingerprint
    benches = {name: images_id(task) for name, task in plan.tasks.items()}
    rules = {"bits": plan.settings.bench.leak_bits, "how": plan.settings.bench.leaks}
    leaks = steps.do("leaks", {"corpus": fingerprint, "tasks": benches, **rules}, lambda: audit(plan, roots, out))
    for line in _audit_lines(leaks):
        report("leaks", line)
    recipe = {"corpus": fingerprint, "leaks": leaks["leaks"], **_model_recipe(plan.settings)}
    run = out / f"pretrain-{recipe_id(recipe)[:8]}"  # other settings make another run beside the first
    clean = [Path(root) for root in leaks["roots"]]
    pretrained = steps.do("pretrain", recipe, lambda: pretrain(plan.settings, clean, run, report))
    probes = _probes(plan, steps, out, pretrained, benches)
    result = {
        "preset": plan.settings.train.preset,
        "recipe": _model_recipe(plan.settings),
        "corpus": {**_choice(plan), "datasets": sets, "images": sum(data_set["images"] for data_set in sets)},
        "leaks": leaks,
        "pretrain": pretrained,
        "tasks": {name: described(task) for name, task in plan.tasks.items()},
        "probes": probes,
        "paired": _paired(plan, out),
        "finetune": _finetunings(plan, steps, out, pretrained, benches),
        "absent": [asdict(absent) for absent in plan.absent],
        "seconds": steps.seconds,
        "hardware": hardware(workplace.workers),
    }
    save_json(out / "report.json", result)
    return result


def _choice(plan: Plan) -> dict[str, Any]:
    """What was chosen of OpenUS-46, for the report."""
    return {
        "name": plan.corpus.name,
        "licence": plan.corpus.licence,
        "profile": plan.settings.clean.profile,
        "limit": plan.corpus.limit,
    }


def _data_set(plan: Plan, check: Found, steps: Steps, workplace: Workplace) -> dict[str, Any]:
    """One data set as a corpus of its own; other files, a limit or other settings make another one beside it."""
    scans, settings = plan.scans_of(check), plan.settings
    if check.dataset.sampling == "one":  # of 840 frames of a case the paper took one
        settings = settings.model_copy(update={"read": settings.read.model_copy(update={"slices": 1})})
    recipe = {"files": [(entry.name, entry.size) for entry in scans], **recipe_settings(settings)}
    root = workplace.out / "corpus" / f"{check.dataset.id}-{recipe_id(recipe)[:8]}"
    return steps.do(f"corpus {check.dataset.id}", recipe, lambda: build_corpus(settings, check, scans, root, workplace))


def _model_recipe(settings: Settings) -> dict[str, Any]:
    return {"model": settings.model.model_dump(), "train": settings.train.model_dump()}


def build_corpus(
    settings: Settings, check: Found, scans: Sequence[Entry], root: Path, workplace: Workplace
) -> dict[str, Any]:
    """Read, clean and pack these scans of one data set; called again it goes on where it was cut."""
    from usfmae.core.keys import new_secret, read_secret, write_secret
    from usfmae.core.prepare import Parallel, Sources, prepare

    secret = workplace.out / "secret"
    if not secret.exists():
        write_secret(secret, new_secret())
    only = {
        (entry.path.absolute(), entry.member): (check.dataset.id, group_of(check.dataset, entry.name))
        for entry in scans
    }
    places = [place.path for place in check.places]
    with workplace.watched() as progress:
        summary = prepare(
            Sources(places, only), root, settings, read_secret(secret), Parallel(workplace.workers), progress
        )
    return {
        **check.as_dict(),
        "read": len(scans),
        "images": summary.kept,
        "root": str(root),
        "prepare": summary.as_dict(),
    }


def audit(plan: Plan, roots: Sequence[Path], out: Path) -> dict[str, Any]:
    """Compare every benchmark image with every corpus image; refuse, or write a corpus without the leaking images."""
    corpus = Corpus(roots)
    everything = np.arange(len(corpus))
    bench = plan.settings.bench
    leaks = [
        leak
        for name, task in plan.tasks.items()
        for leak in same_pictures(
            name, [e.id for e in task.examples], squares(task, bench.image_size), corpus, everything, bench.leak_bits
        )
    ]
    rows = enforce(leaks, everything, bench.leaks)
    if len(rows) < len(everything):
        roots = [without(corpus, rows, out / f"corpus-without-leaks-{corpus.fingerprint[:8]}")]
    compared = sum(len(task.examples) for task in plan.tasks.values()) * len(corpus)
    return {
        "pairs": compared,
        "bits": bench.leak_bits,
        "leaks": [leak.as_dict() for leak in leaks],
        "roots": [str(root) for root in roots],
    }


def _audit_lines(leaks: dict[str, Any]) -> list[str]:
    """The audit for people: what was compared, and each image that was left out."""
    pairs = leaks["leaks"]
    what = f"{leaks['pairs']:,} pairs compared, {len(pairs)} within {leaks['bits']} of 256 bits; no file is in both"
    return [what, *(f"{x['image']} of {x['task']} is {x['where']} of {x['dataset']}: left out" for x in pairs)]


def without(corpus: Corpus, rows_kept: np.ndarray, root: Path) -> Path:
    """A corpus at `root` with the images at positions `kept` only."""
    start = 0
    for index in corpus.shards:
        rows = rows_kept[(rows_kept >= start) & (rows_kept < start + index.shard.count)]
        start += index.shard.count
        pixels = corpus.fetch(rows).pixels if len(rows) else np.empty((0, 1, 1, 1), np.uint8)
        items = [
            PackedImage(
                image[..., 0] if image.shape[-1] == 1 else image, corpus.ids[p], corpus.groups[p], corpus.datasets[p]
            )
            for image, p in zip(pixels, rows, strict=True)
        ]
        if items:
            write_shard(root, index.shard.path.name.split(".")[0] + f"-{index.sha256[:8]}", items)
    return root


def pretrain(settings: Settings, corpus: Sequence[Path], out: Path, report: Report) -> dict[str, Any]:
    """Pretrain, or go on with the run in `out`."""
    from usfmae.core.mae.pretrain import free_device, resume
    from usfmae.core.mae.pretrain import pretrain as begin

    def on_step(record: Any, steps: int) -> None:
        if record.step % max(1, steps // 20) == 0:
            report("pretrain", f"step {record.step} of {steps}, loss {record.loss:.4f}")

    device = free_device(None)
    if (out / "run.json").exists():
        run = resume(out, device=device, on_step=on_step)
    else:
        run = begin(list(corpus), out, settings, device=device, on_step=on_step)
    return {**run.as_dict(), "log": str(out / "log.jsonl")}


def spec_of(model: str, checkpoint: str, seed: int = 0) -> str:
    """The name that `encoders.load` understands for a model of the plan."""
    return {"pretrained": checkpoint, "random": f"random:{checkpoint}@{seed}"}.get(model, model)


def _probes(plan: Plan, steps: Steps, out: Path, pretrained: dict[str, Any], benches: dict[str, str]) -> dict[str, Any]:
    """Reports by task and model."""
    bench, reports = plan.settings.bench, {}
    for name, task in plan.tasks.items():
        for model in plan.models:

            def work(task: BenchmarkTask = task, model: str = model) -> dict[str, Any]:
                encoder = encoders.load(spec_of(model, pretrained["checkpoint"]), bench.pooling, plan.weights)
                report, by_head = probed(task, encoder, bench, out / "features")
                for head, predictions in by_head.items():
                    save_predictions(
                        out / "predictions" / f"{task.name}.{safe_name(model)}.{head}.csv", task, predictions
                    )
                    np.savez(_kept(out, task.name, model, head), probabilities=predictions.probabilities)
                return {**report, "model": model}

            recipe = {"model": model, "checkpoint": pretrained["id"], "images": benches[name], "bench": _bench(bench)}
            reports[f"{name} {model}"] = steps.do(f"probe {name} {model}", recipe, work)
    return reports


def _bench(bench: Any) -> dict[str, Any]:
    return dict(bench.model_dump(exclude={"finetune", "leaks", "leak_bits", "accept_layouts"}))


def _kept(out: Path, task: str, model: str, head: str) -> Path:
    return out / "predictions" / f"{task}.{safe_name(model)}.{head}.npz"


def _paired(plan: Plan, out: Path) -> list[dict[str, Any]]:
    """Paired tests of the pretrained encoder with every other model, on frozen features."""
    from usfmae.core.bench.metrics import pooled
    from usfmae.core.bench.probe import HEADS, predictions

    tests = []
    for name, task in plan.tasks.items():
        for head in HEADS:
            by_model = {}
            for model in plan.models:
                rows = np.load(_kept(out, name, model, head))["probabilities"]
                starts = np.cumsum([0] + [len(s.test) for s in task.splits])
                parts = [
                    predictions(task, s, rows[a:b]) for s, a, b in zip(task.splits, starts, starts[1:], strict=False)
                ]
                by_model[model] = pooled(parts)
            for other in plan.models[1:]:
                tests.append(
                    {
                        "task": name,
                        "head": head,
                        "second": other,
                        **paired(by_model["pretrained"], by_model[other], plan.settings.bench),
                    }
                )
    return tests


def _finetunings(
    plan: Plan, steps: Steps, out: Path, pretrained: dict[str, Any], benches: dict[str, str]
) -> dict[str, Any]:
    bench, reports = plan.settings.bench, {}
    for name, task in plan.tasks.items():
        for model in plan.finetuned:
            spec = spec_of(model, pretrained["checkpoint"])

            def work(task: BenchmarkTask = task, spec: str = spec, model: str = model) -> dict[str, Any]:
                folder = out / "finetune" / f"{task.name}.{safe_name(model)}"
                return finetuned(task, lambda: encoders.load(spec, bench.pooling, plan.weights), bench, folder)

            recipe = {
                "model": model,
                "checkpoint": pretrained["id"],
                "images": benches[name],
                "bench": {**_bench(bench), "finetune": bench.finetune.model_dump()},
            }
            reports[f"{name} {model}"] = steps.do(f"finetune {name} {model}", recipe, work)
    return reports


def hardware(workers: int) -> dict[str, str]:
    """What the figures were measured on."""
    return {
        "GPU": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "processes that read scans": str(workers),
        "torch": torch.__version__,
    }


def _processor() -> str:
    """The processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
