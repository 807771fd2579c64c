"""What a reproduction will do with what lies on disk, decided and checked before anything is trained."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from usfmae.core.bench.encoders import BASELINES, missing
from usfmae.core.bench.evaluate import safe_name, save_json
from usfmae.core.bench.finetune import grid
from usfmae.core.bench.reproduce.paper import shown
from usfmae.core.bench.tasks import BENCHMARKS, base, load
from usfmae.core.config import Settings
from usfmae.core.errors import CheckpointError, SourceError
from usfmae.core.mae.device import autocast, training_flops
from usfmae.core.openus46.archive import Entry
from usfmae.core.openus46.layout import USABLE, Found, check_all, locate
from usfmae.core.openus46.leak import enforce, same_files
from usfmae.core.openus46.registry import CorpusName, LicenceFilter, corpus, dataset
from usfmae.core.types import recipe_id


@dataclass(frozen=True)
class Absent:
    """Something that the paper has and this disk has not."""

    kind: Literal["benchmark", "data set", "baseline"]
    name: str
    how: str  # to get it


@dataclass(frozen=True)
class CorpusChoice:
    """Which data sets are trained on, and how much of each."""

    name: CorpusName = "strict42"
    licence: LicenceFilter = "any"
    limit: int | None = None  # scans of each data set at most; None: all


@dataclass(frozen=True)
class ModelChoice:
    """Which models are compared. No baseline named means all whose weights are on disk."""

    weights: Path | None = None  # folder of downloaded weights
    baselines: Sequence[str] = ()
    finetuning: bool = True


@dataclass(frozen=True)
class Plan:
    root: Path
    settings: Settings
    corpus: CorpusChoice
    checks: tuple[Found, ...]  # data sets of the corpus
    tasks: dict[str, base.BenchmarkTask]
    models: tuple[str, ...]  # "pretrained", "random", then names for `encoders.load`
    finetuned: tuple[str, ...]  # those of them that are also fine-tuned
    absent: tuple[Absent, ...]
    weights: Path | None = None

    @property
    def usable(self) -> tuple[Found, ...]:
        return tuple(f for f in self.checks if f.status in USABLE)

    def scans_of(self, check: Found) -> list[Entry]:
        """The scans of a data set that are read: all, or `limit` of them spread evenly over its files."""
        listed = [entry for place in check.places for entry in place.chosen]
        limit = self.corpus.limit
        if limit is None or len(listed) <= limit:
            return listed
        return [listed[i] for i in np.linspace(0, len(listed) - 1, limit).round().astype(int)]


def make(
    root: Path, settings: Settings, chosen: CorpusChoice = CorpusChoice(), compared: ModelChoice = ModelChoice()
) -> Plan:
    """Check every data set and every benchmark below `root`. Raises SourceError naming what is wrong.

    Raises CheckpointError where the weights of a named baseline are not on disk.
    """
    checks = tuple(check_all(corpus(chosen.name, chosen.licence), root, settings.bench.accept_layouts))
    _no_broken_set(checks, root)
    tasks, absent = _tasks(root, settings)
    if not any(f.status in USABLE for f in checks):
        lacks = f"holds no data set of the corpus {chosen.name}"
        raise SourceError(f"root {root}", lacks, "see 'usfmae datasets list'")
    lacking = (f.dataset for f in checks if f.status == "missing")
    absent += [Absent("data set", f"{d.name}, {d.images:,} images", d.link) for d in lacking]
    models, without = _models(compared.weights, compared.baselines)
    tuned = tuple(m for m in models if m != "pixels") if compared.finetuning else ()
    missing_here = (*absent, *without)
    plan = Plan(root, settings, chosen, checks, tasks, models, tuned, missing_here, compared.weights)
    _no_shared_files(plan)
    return plan


def _no_broken_set(checks: Sequence[Found], root: Path) -> None:
    """Raises SourceError naming the first data sets that are there and cannot be read."""
    broken = [f for f in checks if f.status in ("damaged", "mismatch", "packed", "unverified")]
    if broken:
        named = "; ".join(f"{f.dataset.id} is {f.status}: {f.detail}" for f in broken[:3])
        what = f"{len(broken)} data set(s) below {root}"
        raise SourceError(what, named, "mend or remove their folders; see 'usfmae datasets check'")


def _tasks(root: Path, settings: Settings) -> tuple[dict[str, base.BenchmarkTask], list[Absent]]:
    tasks: dict[str, base.BenchmarkTask] = {}
    absent: list[Absent] = []
    for name, benchmark in BENCHMARKS.items():
        if not benchmark.dataset:
            continue
        published = dataset(benchmark.dataset)
        if places := locate(published, root):
            tasks[name] = load(name, places[0], settings.bench.seed)
        else:
            absent.append(Absent("benchmark", published.name, published.link))
    if not tasks:
        raise SourceError(f"root {root}", "holds none of the three benchmarks", "fetch at least one of them")
    return tasks, absent


def _models(weights: Path | None, baselines: Sequence[str]) -> tuple[tuple[str, ...], list[Absent]]:
    """Models that can be run here, and those that cannot. Raises CheckpointError for a named one that cannot."""
    own = ("pretrained", "random")
    for spec in baselines:
        if reason := missing(spec, weights):
            raise CheckpointError(f"baseline {spec}", reason, "or leave it out")
    if baselines:
        return (*own, *baselines), []
    specs = ("pixels", "efficientnet-lite0", *BASELINES, f"ultrasam:{(weights or Path('weights')) / 'UltraSam.pth'}")
    why = {spec: missing(spec, weights) for spec in specs}
    without = [Absent("baseline", f"{shown(spec)} ({spec})", reason) for spec, reason in why.items() if reason]
    return (*own, *(spec for spec in specs if not why[spec])), without


def _no_shared_files(plan: Plan) -> None:
    """Raises SourceError where a file of the corpus is an image of a benchmark."""
    scans = [(f.dataset.id, entry) for f in plan.usable for entry in plan.scans_of(f)]
    leaks = [
        leak
        for name, task in plan.tasks.items()
        for leak in same_files(name, [(e.id, e.entry) for e in task.examples], scans)
    ]
    enforce(leaks, np.arange(0), "refuse")


def steps_of(plan: Plan) -> list[dict[str, Any]]:
    """The steps in order with the work of each, in images through the encoder (forward and backward count three)."""
    settings, train = plan.settings, plan.settings.train
    expected = {f.dataset.id: _expected_images(plan, f) for f in plan.usable}
    steps = train.steps or -(-train.epochs * sum(expected.values()) // train.batch_size)
    listed: list[dict[str, Any]] = [
        *({"step": f"corpus {id_}", "what": f"about {count:,} images", "images": 0} for id_, count in expected.items()),
        {"step": "leaks", "what": f"{len(plan.tasks)} benchmarks against the corpus", "images": 0},
        {"step": "pretrain", "what": f"{steps:,} steps of {train.batch_size}", "images": 3 * steps * train.batch_size},
    ]
    for name, task in plan.tasks.items():
        for model in plan.models:
            listed.append(
                {
                    "step": f"probe {name} {model}",
                    "what": f"{len(task.examples):,} images",
                    "images": 0 if model == "pixels" else len(task.examples),  # no network is run
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


def _expected_images(plan: Plan, check: Found) -> int:
    """Table 1's count, or its share where not all scans are there or not all are read."""
    scans = len(plan.scans_of(check))
    complete = check.expected or (check.scans if check.status != "partial" else None)
    if not complete:
        return max(1, scans)
    return max(1, check.dataset.images * min(scans, complete) // complete)


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
    from usfmae.core.mae.model import MaskedAutoencoder

    model = MaskedAutoencoder(settings.model, mask_ratio=0.25).to(where)
    count = 64 if where.type == "cuda" else 4
    images = torch.zeros(count, 3, settings.model.image_size, settings.model.image_size, device=where)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        with autocast(where, settings.train.precision):
            loss = model(images)[0]
        loss.backward()
        float(loss.detach())  # waits for the device
        seconds.append(time.perf_counter() - began)
    masked, whole = (training_flops(settings.model, ratio) for ratio in (0.25, 1e-9))
    return 3 * count / min(seconds) * masked / whole


Report = Callable[[str, str], None]  # step, what happened


class Steps:
    """The steps that are done, in a folder."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.folder, self.report = folder, report
        self.seconds: dict[str, float] = {}  # of the steps that this run asked for, in order

    def do(self, name: str, recipe: dict[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a step: read back where it was done for this recipe, else worked out and kept.

        The time of a step that was cut and begun again is that of its last attempt.
        """
        path = self.folder / f"{safe_name(name)}.json"
        key = recipe_id({"step": name, **recipe})
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError):
            record = {}
        if record.get("recipe") != key:
            self.report(name, "begins")
            began = time.perf_counter()
            result = work()
            record = {"recipe": key, "seconds": round(time.perf_counter() - began, 2), "result": result}
            save_json(path, record)
            self.report(name, f"done, {record['seconds']:.0f} s")
        else:
            self.report(name, f"done before, {record['seconds']:.0f} s")
        self.seconds[name] = record["seconds"]
        return dict(record["result"])
