"""OpenUS-46 on disk -> corpus -> leak audit -> pretraining -> probes -> fine-tuning -> one report, step by step.

A step writes `steps/NAME.json` when it is done, with the recipe it was done for; the same recipe is not done again.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from usfmae.core.bench import encoders
from usfmae.core.bench.base import Task
from usfmae.core.bench.evaluate import described, finetuned, paired, probed, safe_name, save_json, save_predictions
from usfmae.core.bench.features import images_id, squares
from usfmae.core.bench.plan import Plan
from usfmae.core.config import Settings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.openus46_layout import group_of
from usfmae.core.corpus.openus46_leak import enforce, same_pictures
from usfmae.core.corpus.shard import Packed, write_shard
from usfmae.core.flow import recipe_id
from usfmae.core.prepare.run import recipe_settings

Told = Callable[[str, str], None]  # step, what happened
CHECKPOINT = "checkpoint.safetensors"


class Steps:
    """The steps that are done, in a folder."""

    def __init__(self, folder: Path, told: Told) -> None:
        self.folder, self.told = folder, told

    def do(self, name: str, recipe: dict[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a step: read back where it was done for this recipe, else worked out and kept."""
        path = self.folder / f"{safe_name(name)}.json"
        key = recipe_id({"step": name, **recipe})
        try:
            kept = json.loads(path.read_text())
        except (OSError, ValueError):
            kept = {}
        if kept.get("recipe") == key:
            self.told(name, f"done before, {kept['seconds']:.0f} s")
            return dict(kept["result"])
        self.told(name, "begins")
        began = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - began
        save_json(path, {"recipe": key, "seconds": round(seconds, 2), "result": result})
        self.told(name, f"done, {seconds:.0f} s")
        return {**result}

    def seconds(self) -> dict[str, float]:
        return {p.stem: json.loads(p.read_text())["seconds"] for p in sorted(self.folder.glob("*.json"))}


def reproduce(plan: Plan, out: Path, told: Told, workers: int = 1) -> dict[str, Any]:
    """Do every step of a plan that is not done, and return all results. Raises SourceError on a leak."""
    steps = Steps(out / "steps", told)
    corpus = steps.do("corpus", _corpus_recipe(plan), lambda: build_corpus(plan, out, workers))
    root = corpus_folder(plan.settings, out)
    fingerprint = Corpus([root], verify=False).fingerprint
    benches = {name: images_id(task) for name, task in plan.tasks.items()}
    rules = {"bits": plan.settings.bench.leak_bits, "how": plan.settings.bench.leaks}
    leaks = steps.do("leaks", {"corpus": fingerprint, "tasks": benches, **rules}, lambda: audit(plan, root, out))
    root = Path(leaks["root"])
    recipe = {"corpus": fingerprint, "leaks": leaks["leaks"], **_model_recipe(plan.settings)}
    run = out / f"pretrain-{recipe_id(recipe)[:8]}"  # other settings make another run beside the first
    pretrained = steps.do("pretrain", recipe, lambda: pretrain(plan.settings, root, run, told))
    probes, tests = _probes(plan, steps, out, pretrained)
    tuned = _finetunings(plan, steps, out, pretrained)
    result = {
        "corpus": corpus,
        "leaks": leaks,
        "pretrain": pretrained,
        "tasks": {name: described(task) for name, task in plan.tasks.items()},
        "probes": probes,
        "paired": tests,
        "finetune": tuned,
        "absent": list(plan.absent),
        "seconds": steps.seconds(),
        "hardware": hardware(),
    }
    save_json(out / "report.json", result)
    return result


def _corpus_recipe(plan: Plan) -> dict[str, Any]:
    files = [(id_, name, entry.size) for id_, name, entry in plan.entries()]
    return {"files": files, **recipe_settings(plan.settings)}


def corpus_folder(settings: Settings, out: Path) -> Path:
    """Other settings make another corpus beside the first."""
    return out / f"corpus-{recipe_id(recipe_settings(settings))[:8]}"


def _model_recipe(settings: Settings) -> dict[str, Any]:
    return {"model": settings.model.model_dump(), "train": settings.train.model_dump()}


def build_corpus(plan: Plan, out: Path, workers: int) -> dict[str, Any]:
    """Read, clean and pack the scans of every usable data set."""
    from usfmae.core.keys import new_secret, read_secret, write_secret
    from usfmae.core.prepare import prepare

    secret, folder = out / "secret", corpus_folder(plan.settings, out)
    if not secret.exists():
        write_secret(secret, new_secret())
    only = {
        (entry.path.absolute(), entry.member): (f.dataset.id, group_of(f.dataset, entry.name))
        for f in plan.usable
        for place in f.places
        for entry in place.chosen
    }
    sources = [place.path for f in plan.usable for place in f.places]
    done = prepare(sources, folder, plan.settings, secret=read_secret(secret), workers=workers, only=only)
    names, counts = np.unique(Corpus([folder], verify=False).datasets, return_counts=True)
    images = dict(zip(names.tolist(), counts.tolist(), strict=True))
    sets = [{**f.as_dict(), "images": images.get(f.dataset.id, 0)} for f in plan.usable]
    return {"prepare": done.as_dict(), "datasets": sets, "images": int(counts.sum())}


def audit(plan: Plan, root: Path, out: Path) -> dict[str, Any]:
    """Compare every benchmark image with every corpus image; refuse, or write a corpus without the leaking images."""
    corpus = Corpus([root])
    everything = np.arange(len(corpus))
    bench = plan.settings.bench
    leaks = [
        leak
        for name, task in plan.tasks.items()
        for leak in same_pictures(
            name, [e.id for e in task.examples], squares(task, bench.image_size), corpus, everything, bench.leak_bits
        )
    ]
    kept = enforce(leaks, everything, bench.leaks)
    if len(kept) < len(everything):
        root = without(corpus, kept, out / "corpus-without-leaks")
    compared = sum(len(task.examples) for task in plan.tasks.values()) * len(corpus)
    return {"pairs": compared, "bits": bench.leak_bits, "leaks": [leak.as_dict() for leak in leaks], "root": str(root)}


def without(corpus: Corpus, kept: np.ndarray, root: Path) -> Path:
    """A corpus at `root` with the images at positions `kept` only."""
    start = 0
    for index in corpus.shards:
        rows = kept[(kept >= start) & (kept < start + index.shard.count)]
        start += index.shard.count
        pixels = corpus.fetch(rows).pixels if len(rows) else np.empty((0, 1, 1, 1), np.uint8)
        items = [
            Packed(
                image[..., 0] if image.shape[-1] == 1 else image, corpus.ids[p], corpus.groups[p], corpus.datasets[p]
            )
            for image, p in zip(pixels, rows, strict=True)
        ]
        if items:
            write_shard(root, index.shard.path.name.split(".")[0] + f"-{index.sha256[:8]}", items)
    return root


def pretrain(settings: Settings, corpus: Path, out: Path, told: Told) -> dict[str, Any]:
    """Pretrain, or go on with the run in `out`."""
    from usfmae.core.pretrain import free_device, resume
    from usfmae.core.pretrain import pretrain as begin

    def on_step(record: Any, steps: int) -> None:
        if record.step % max(1, steps // 20) == 0:
            told("pretrain", f"step {record.step} of {steps}, loss {record.loss:.4f}")

    device = free_device(None)
    if (out / "run.json").exists():
        done = resume(out, device=device, on_step=on_step)
    else:
        done = begin([corpus], out, settings, device=device, on_step=on_step)
    return {**done.as_dict(), "log": str(out / "log.jsonl")}


def spec_of(model: str, checkpoint: str, seed: int = 0) -> str:
    """The name that `encoders.load` understands for a model of the plan."""
    return {"pretrained": checkpoint, "random": f"random:{checkpoint}@{seed}"}.get(model, model)


def _probes(
    plan: Plan, steps: Steps, out: Path, pretrained: dict[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reports by task and model, and paired tests of the pretrained encoder with every other model."""
    bench, found = plan.settings.bench, {}
    for name, task in plan.tasks.items():
        for model in plan.models:

            def work(task: Task = task, model: str = model) -> dict[str, Any]:
                encoder = encoders.load(spec_of(model, pretrained["checkpoint"]), bench.pooling, plan.weights)
                report, said = probed(task, encoder, bench, out / "features")
                for head, predictions in said.items():
                    save_predictions(
                        out / "predictions" / f"{task.name}.{safe_name(model)}.{head}.csv", task, predictions
                    )
                    np.savez(_kept(out, task.name, model, head), probabilities=predictions.probabilities)
                return {**report, "model": model}

            recipe = {"model": model, "checkpoint": pretrained["id"], "images": images_id(task), "bench": _bench(bench)}
            found[f"{name} {model}"] = steps.do(f"probe {name} {model}", recipe, work)
    return found, _paired(plan, out)


def _bench(bench: Any) -> dict[str, Any]:
    return dict(bench.model_dump(exclude={"finetune", "leaks", "leak_bits", "accept_layouts"}))


def _kept(out: Path, task: str, model: str, head: str) -> Path:
    return out / "predictions" / f"{task}.{safe_name(model)}.{head}.npz"


def _paired(plan: Plan, out: Path) -> list[dict[str, Any]]:
    from usfmae.core.bench.metrics import pooled
    from usfmae.core.bench.probe import HEADS, predictions

    tests = []
    for name, task in plan.tasks.items():
        for head in HEADS:
            said = {}
            for model in plan.models:
                rows = np.load(_kept(out, name, model, head))["probabilities"]
                starts = np.cumsum([0] + [len(s.test) for s in task.splits])
                parts = [
                    predictions(task, s, rows[a:b]) for s, a, b in zip(task.splits, starts, starts[1:], strict=False)
                ]
                said[model] = pooled(parts)
            for other in plan.models[1:]:
                tests.append(
                    {
                        "task": name,
                        "head": head,
                        "second": other,
                        **paired(said["pretrained"], said[other], plan.settings.bench),
                    }
                )
    return tests


def _finetunings(plan: Plan, steps: Steps, out: Path, pretrained: dict[str, Any]) -> dict[str, Any]:
    bench, found = plan.settings.bench, {}
    for name, task in plan.tasks.items():
        for model in plan.finetuned:
            spec = spec_of(model, pretrained["checkpoint"])

            def work(task: Task = task, spec: str = spec, model: str = model) -> dict[str, Any]:
                folder = out / "finetune" / f"{task.name}.{safe_name(model)}"
                return finetuned(task, lambda: encoders.load(spec, bench.pooling, plan.weights), bench, folder)

            recipe = {
                "model": model,
                "checkpoint": pretrained["id"],
                "images": images_id(task),
                "bench": bench.finetune.model_dump(),
            }
            found[f"{name} {model}"] = steps.do(f"finetune {name} {model}", recipe, work)
    return found


def hardware() -> dict[str, str]:
    """What the figures were measured on."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {"gpu": gpu, "cpu_cores": str(os.cpu_count()), "machine": platform.machine(), "torch": torch.__version__}


__all__: Sequence[str] = ("Steps", "reproduce")
