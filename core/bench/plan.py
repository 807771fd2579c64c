"""What a reproduction will do with what lies on disk, decided and checked before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from usfmae.core.bench import base
from usfmae.core.bench.encoders import BASELINES, missing
from usfmae.core.bench.finetune import grid
from usfmae.core.config import Settings
from usfmae.core.corpus.openus46 import CorpusName, LicenceFilter, corpus, dataset
from usfmae.core.corpus.openus46_archive import Entry
from usfmae.core.corpus.openus46_layout import USABLE, Found, check_all, locate
from usfmae.core.corpus.openus46_leak import enforce, same_files
from usfmae.core.errors import CheckpointError, SourceError
from usfmae.core.flops import training_flops

TASKS = {"bus-bra": "bus_bra", "mmotu-2d": "mmotu_2d", "gist514": "gist514"}


@dataclass(frozen=True)
class Plan:
    root: Path
    settings: Settings
    corpus_name: CorpusName
    licence: LicenceFilter
    found: tuple[Found, ...]  # data sets of the corpus
    tasks: dict[str, base.Task]
    models: tuple[str, ...]  # "pretrained", "random", then names for `encoders.load`
    finetuned: tuple[str, ...]  # those of them that are also fine-tuned
    absent: tuple[str, ...]  # what the paper has and this disk has not, for the report
    weights: Path | None = None

    @property
    def usable(self) -> tuple[Found, ...]:
        return tuple(f for f in self.found if f.status in USABLE and f.dataset.kind != "hdf5")

    def entries(self) -> list[tuple[str, str, Entry]]:
        """(data set, layout's group text is the caller's business, file) of every scan of the corpus."""
        return [(f.dataset.id, e.name, e) for f in self.usable for p in f.places for e in p.chosen]


def make(
    root: Path,
    settings: Settings,
    corpus_name: CorpusName = "strict42",
    licence: LicenceFilter = "any",
    weights: Path | None = None,
    finetuning: bool = True,
    baselines: Sequence[str] = (),
) -> Plan:
    """Check every data set and every benchmark below `root`. Raises SourceError naming what is wrong.

    `baselines`: models to compare with; none means all whose weights are on disk. Raises CheckpointError where the
    weights of a named one are not.
    """
    found = check_all(corpus(corpus_name, licence), root, settings.bench.accept_layouts)
    broken = [f for f in found if f.status in ("damaged", "mismatch", "packed", "unverified")]
    if broken:
        named = "; ".join(f"{f.dataset.id} is {f.status}: {f.detail}" for f in broken[:3])
        raise SourceError(
            f"{len(broken)} data set(s) below {root}",
            named,
            "mend or remove their folders; see 'usfmae datasets check'",
        )
    tasks, absent = _tasks(root, settings)
    if not any(f.status in USABLE for f in found):
        raise SourceError(
            f"root {root}", f"holds no data set of the corpus {corpus_name}", "see 'usfmae datasets list'"
        )
    absent += [
        f"{f.dataset.name} ({f.dataset.images:,} images): {f.dataset.link}" for f in found if f.status == "missing"
    ]
    absent += [f"{f.dataset.name}: {f.detail}" for f in found if f.scans and f.dataset.kind == "hdf5"]
    for spec in baselines:
        if reason := missing(spec, weights):
            raise CheckpointError(f"baseline {spec}", reason, "or leave it out")
    models, without = _models(weights, baselines)
    plan = Plan(
        root,
        settings,
        corpus_name,
        licence,
        tuple(found),
        tasks,
        models,
        tuple(m for m in models if m != "pixels") if finetuning else (),
        (*absent, *without),
        weights,
    )
    _no_shared_files(plan)
    return plan


def _tasks(root: Path, settings: Settings) -> tuple[dict[str, base.Task], list[str]]:
    tasks, absent = {}, []
    for name, id_ in TASKS.items():
        places = locate(dataset(id_), root)
        if places:
            tasks[name] = base.load(name, places[0], settings.bench.seed)
        else:
            absent.append(f"benchmark {dataset(id_).name}: {dataset(id_).link}")
    if not tasks:
        raise SourceError(f"root {root}", "holds none of the three benchmarks", "fetch at least one of them")
    return tasks, absent


def _models(weights: Path | None, baselines: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Models that can be run here, and a line for each that cannot."""
    own = ("pretrained", "random")
    if baselines:
        return (*own, *baselines), []
    wanted = ("pixels", "efficientnet-lite0", *BASELINES, f"ultrasam:{(weights or Path('weights')) / 'UltraSam.pth'}")
    why = {spec: missing(spec, weights) for spec in wanted}
    without = [f"baseline {spec}: {reason}" for spec, reason in why.items() if reason]
    return (*own, *(spec for spec in wanted if not why[spec])), without


def _no_shared_files(plan: Plan) -> None:
    """Raises SourceError where a file of the corpus is an image of a benchmark."""
    import numpy as np

    scans = [(id_, entry) for id_, _, entry in plan.entries()]
    leaks = [
        leak
        for name, task in plan.tasks.items()
        for leak in same_files(name, [(e.id, e.entry) for e in task.examples], scans)
    ]
    enforce(leaks, np.arange(0), "refuse")


def steps_of(plan: Plan) -> list[dict[str, Any]]:
    """The steps in order with the work of each, in images through the encoder (forward and backward count three)."""
    settings, train = plan.settings, plan.settings.train
    images = sum(_expected_images(f) for f in plan.usable)
    steps = train.steps or -(-train.epochs * images // train.batch_size)
    listed: list[dict[str, Any]] = [
        {"step": "corpus", "what": f"{len(plan.usable)} data sets, about {images:,} images", "images": 0},
        {"step": "leaks", "what": f"{len(plan.tasks)} benchmarks against the corpus", "images": 0},
        {"step": "pretrain", "what": f"{steps:,} steps of {train.batch_size}", "images": 3 * steps * train.batch_size},
    ]
    for name, task in plan.tasks.items():
        for model in plan.models:
            listed.append(
                {
                    "step": f"probe {name} {model}",
                    "what": f"{len(task.examples):,} images",
                    "images": len(task.examples),
                }
            )
    for name, task in plan.tasks.items():
        tuned = settings.bench.finetune
        runs = len(task.splits) * (len(grid(tuned)) + len(tuned.seeds) - 1)
        passes = sum(len(s.train) for s in task.splits) // len(task.splits) * tuned.epochs * runs
        for model in plan.finetuned:
            what = f"{runs} runs of at most {tuned.epochs} epochs"
            listed.append({"step": f"finetune {name} {model}", "what": what, "images": 3 * passes})
    return listed


def _expected_images(found: Found) -> int:
    """Table 1's count, or its share where the copy is partial and the complete number of files is known."""
    if found.expected and found.scans < found.expected:
        return max(1, found.dataset.images * found.scans // found.expected)
    return found.dataset.images if found.status != "partial" else max(found.scans, 1)


def estimated(plan: Plan, steps: Sequence[dict[str, Any]]) -> tuple[str, list[float]]:
    """The device found and hours for each step, from a measured training step of the encoder on it."""
    from usfmae.core.bench.features import device

    where = device()
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    rate = _forward_rate(plan.settings, where)
    masked = training_flops(plan.settings.model, plan.settings.train.mask_ratio)
    whole = training_flops(plan.settings.model, 1e-9)
    return name, [s["images"] / rate * (masked / whole if s["step"] == "pretrain" else 1.0) / 3600 for s in steps]


def _forward_rate(settings: Settings, where: torch.device) -> float:
    """Whole images per second forward, a third of the work of a training image."""
    from usfmae.core.model import MaskedAutoencoder

    model = MaskedAutoencoder(settings.model, mask_ratio=0.25).to(where)
    count = 64 if where.type == "cuda" else 4
    images = torch.zeros(count, 3, settings.model.image_size, settings.model.image_size, device=where)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        with torch.autocast(where.type, torch.bfloat16, enabled=settings.train.precision == "bf16"):
            loss = model(images)[0]
        loss.backward()
        float(loss.detach())  # waits for the device
        seconds.append(time.perf_counter() - began)
    masked, whole = (training_flops(settings.model, ratio) for ratio in (0.25, 1e-9))
    return 3 * count / min(seconds) * masked / whole
