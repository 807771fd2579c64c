"""What objectives are judged by: probes of frozen features on three data sets, each parted in two by patient.

The part `choose` (about 40 % of the patients) is what a recipe may be chosen on. The part `report` is measured once, for
the recipes that were chosen, with other seeds; a probe that is reported may be fitted on the first part, never the
other way round. Which patient is in which part depends on its name alone.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from usfmae.core.bench import encoders
from usfmae.core.bench.features import compute, squares
from usfmae.core.bench.metrics import Predictions, auroc, measures
from usfmae.core.bench.probe import probe
from usfmae.core.bench.tasks import load as load_task
from usfmae.core.bench.tasks.base import BenchmarkTask, Example, Split, grouped, validation_of
from usfmae.core.config.bench import BenchSettings
from usfmae.core.openus46.archive import entries
from usfmae.core.types import Pixels, content_id

FOLDS = 5
CHOOSING = 0.4  # share of the patients that recipes are chosen on


class Probes:
    """The tasks below ROOT, their pictures as squares, and both parts of each; read once for all encoders."""

    def __init__(self, root: Path, size: int) -> None:
        tasks = {
            "bus-bra": load_task("bus-bra", root / "bus_bra"),
            "mmotu-2d": load_task("mmotu-2d", root / "mmotu_2d"),
            "pocus": pocus(root),
        }
        self.pixels: dict[str, Pixels] = {name: squares(task, size) for name, task in tasks.items()}
        self.parts = {part: {name: parted(task, part) for name, task in tasks.items()} for part in ("choose", "report")}

    def read(self, spec: str, part: str) -> tuple[dict[str, float], dict[str, Predictions]]:
        """AUROC of logistic regression and of kNN by task, effective rank, and the predictions they rest on."""
        encoder = encoders.load(spec, "mean")
        figures: dict[str, float] = {}
        predictions: dict[str, Predictions] = {}
        for name, task in self.parts[part].items():
            values = compute(encoder, self.pixels[name])
            result = probe(task, values, BenchSettings(), curve=False).predictions
            predictions[name] = result["logistic"]
            figures[f"{name} AUROC"] = float(auroc(result["logistic"]))
            figures[f"{name} AUROC, mean of folds"] = float(measures(result["logistic"])["auroc_by_split"])
            figures[f"{name} AUROC, kNN"] = float(auroc(result["knn"]))
            if name == "bus-bra":
                figures["effective rank"] = effective_rank(values)
        return figures, predictions


def parted(task: BenchmarkTask, part: str) -> BenchmarkTask:
    """Five folds by patient of one part; a reported fold is fitted on the other folds and all of `choose`."""
    draws = np.array([int(content_id("objective", task.name, g)[:8], 16) / 16**8 for g in task.groups])
    choosing, reporting = np.flatnonzero(draws < CHOOSING), np.flatnonzero(draws >= CHOOSING)
    tested = choosing if part == "choose" else reporting
    splits = []
    for number, (fit, test) in enumerate(grouped(task.labels[tested], task.groups[tested], FOLDS, 0), start=1):
        fitted = tested[fit] if part == "choose" else np.concatenate([choosing, tested[fit]])
        splits.append(Split(f"fold-{number}", *validation_of(task, fitted, 0.1, 0), tested[test]))
    return replace(task, splits=tuple(splits))


def pocus(root: Path) -> BenchmarkTask:
    """Lung frames in three classes; a patient is a source video, as ROOT's index names it."""
    with (root / "index.csv").open(newline="") as stream:
        rows = [r for r in csv.DictReader(stream) if r["dataset"] == "pocus_frames" and r["label"]]
    listed = {entry.name.partition("/")[2]: entry for entry in entries(root / "pocus_frames")}
    classes = tuple(sorted({row["label"] for row in rows}))
    examples = []
    for row in rows:
        name = row["path"].partition("/")[2]
        if name in listed:
            examples.append(Example(name, listed[name], classes.index(row["label"]), row["group"]))
    return BenchmarkTask("pocus", classes, tuple(examples), ())


def effective_rank(values: np.ndarray) -> float:
    """exp of the entropy of the shares of variance (Roy and Vetterli 2007)."""
    spread = np.linalg.svd(values - values.mean(axis=0), compute_uv=False) ** 2
    shares = spread[spread > 0] / spread.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
