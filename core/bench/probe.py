"""Frozen features: kNN and logistic regression on every split, and how few labelled patients suffice.

Logistic regression: standardised features, C chosen by cross-entropy over grouped folds of train and validation, then
fitted on both. (Balanced accuracy on one small validation part chose C by chance: docs/results/benchmarks.md.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usfmae.core.bench.features import Features
from usfmae.core.bench.heads import knn, logistic
from usfmae.core.bench.metrics import Predictions, measures, pooled
from usfmae.core.bench.tasks.base import BenchmarkTask, Positions, Split, grouped
from usfmae.core.config.bench import BenchSettings

FOLDS = 5  # that choose C
HEADS = ("logistic", "knn")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ProbeResult:
    """Predictions by head over all splits, the C of each split, and the label-efficiency curve."""

    predictions: dict[str, Predictions]
    chosen: dict[str, float]  # split -> C
    curve: list[dict[str, float]]  # fraction, patients, images; balanced accuracy and its spread over draws


def probe(task: BenchmarkTask, features: Features, settings: BenchSettings, *, curve: bool = True) -> ProbeResult:
    """Probe features (N, D) on every split of a task."""
    parts: dict[str, list[Predictions]] = {head: [] for head in HEADS}
    chosen = {}
    for split in task.splits:
        train = np.concatenate([split.train, split.validation])
        best = choose(features, task, train, settings)
        chosen[split.name] = best
        by_head = {
            "logistic": logistic(features[train], task.labels[train], features[split.test], len(task.classes), best),
            "knn": knn(
                features[train], task.labels[train], features[split.test], len(task.classes), settings.neighbours
            ),
        }
        for head, probabilities in by_head.items():
            parts[head].append(predictions(task, split, probabilities))
    return ProbeResult(
        {head: pooled(parts_of_head) for head, parts_of_head in parts.items()},
        chosen,
        label_curve(task, features, settings, chosen) if curve else [],
    )


def predictions(task: BenchmarkTask, split: Split, probabilities: Floats) -> Predictions:
    """Class probabilities (T, K) for the T test images of a split."""
    examples = [task.examples[i] for i in split.test]
    return Predictions(
        task.labels[split.test],
        probabilities,
        tuple(e.group for e in examples),
        tuple(e.id for e in examples),
        (split.name,) * len(examples),
        task.positive,
    )


def choose(features: Features, task: BenchmarkTask, train: Positions, settings: BenchSettings) -> float:
    """The C with the smallest cross-entropy over grouped folds of the training images; of equals, the smallest.

    The search goes up from the smallest C and ends once two larger ones in a row were worse: the largest cost most,
    and beyond the best one they only fit noise.
    """
    folds = chosen_folds(task, train, settings.seed)
    best, least, worse = min(settings.regularisation), np.inf, 0
    for c in sorted(settings.regularisation):
        loss = float(np.mean([_cross_entropy(features, task, fit, held, c) for fit, held in folds]))
        if loss < least:
            best, least, worse = c, loss, 0
        else:
            worse += 1
            if worse == 2:
                break
    return best


def chosen_folds(task: BenchmarkTask, train: Positions, seed: int) -> list[tuple[Positions, Positions]]:
    """Folds of the training images by group, classes in proportion: as many as the groups allow, at most FOLDS."""
    groups = len(set(task.groups[train]))
    if groups < 2:
        return [(train, train)]
    parts = grouped(task.labels[train], task.groups[train], min(FOLDS, groups), seed)
    return [(train[fit], train[held]) for fit, held in parts]


def _cross_entropy(features: Features, task: BenchmarkTask, fit: Positions, held: Positions, c: float) -> float:
    probabilities = logistic(features[fit], task.labels[fit], features[held], len(task.classes), c)
    return float(-np.log(np.maximum(probabilities[np.arange(len(held)), task.labels[held]], 1e-12)).mean())


def label_curve(
    task: BenchmarkTask, features: Features, settings: BenchSettings, chosen: dict[str, float]
) -> list[dict[str, Any]]:
    """Balanced accuracy of logistic regression when only a share of the training patients is labelled.

    Each share below 1 is drawn `repeats` times per split, patients whole, every class kept; C stays as chosen.
    """
    points = []
    for fraction in sorted(settings.fractions):
        values, patients, images = [], [], []
        for number, split in enumerate(task.splits):
            train = np.concatenate([split.train, split.validation])
            for repeat in range(settings.repeats if fraction < 1 else 1):
                some = draw(task, train, fraction, settings.seed + 1000 * number + repeat)
                probabilities = logistic(
                    features[some], task.labels[some], features[split.test], len(task.classes), chosen[split.name]
                )
                values.append(float(_balanced(task.labels[split.test], probabilities)))
                patients.append(len(set(task.groups[some])))
                images.append(len(some))
        points.append(
            {
                "fraction": fraction,
                "patients": float(np.mean(patients)),
                "images": float(np.mean(images)),
                "balanced_accuracy": float(np.mean(values)),
                "low": float(np.percentile(values, 2.5)),
                "high": float(np.percentile(values, 97.5)),
                "draws": len(values),
            }
        )
    return points


def draw(task: BenchmarkTask, train: Positions, fraction: float, seed: int) -> Positions:
    """Training positions of a random share of the patients, with at least one patient of every class."""
    if fraction >= 1:
        return train
    order = np.random.default_rng(seed).permutation(np.unique(task.groups[train]))
    drawn = set(order[: max(1, round(fraction * len(order)))])
    for k in np.unique(task.labels[train]):
        having = set(task.groups[train][task.labels[train] == k])
        if not having & drawn:
            drawn.add(next(g for g in order if g in having))
    return train[np.isin(task.groups[train], list(drawn))]


def _balanced(labels: NDArray[np.int64], probabilities: Floats) -> Floats:
    predictions = Predictions(labels, probabilities, ("",) * len(labels), (), ())
    return measures(predictions)["balanced_accuracy"]
