"""Scores of predictions in two views, with intervals over patients and paired tests between models.

`paper`: precision, recall and F1 of the positive class for binary tasks, micro averages otherwise (USF-MAE, Table 2).
`ultrasam`: macro averages over the classes (mmpretrain's default, as UltraSam reports). The two are not comparable.

N examples, K classes, R bootstrap resamples, C = (..., K, K) confusion counts with rows true, columns predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BINS = 15  # of the calibration error
COMPARED = ("ultrasam.f1", "balanced_accuracy", "auroc")
PRINTED = ("paper.f1", *COMPARED, "auroc_by_split")


@dataclass(frozen=True)
class Predictions:
    """What one model said about each test example, once."""

    labels: Ints  # (N,)
    probabilities: Floats  # (N, K), rows sum to 1
    groups: tuple[str, ...]  # patients; resampled as a whole
    ids: tuple[str, ...]  # images
    splits: tuple[str, ...]  # which split tested the image
    positive: int | None = None  # class of the binary view, None for micro averages

    @property
    def predicted(self) -> Ints:
        return np.asarray(self.probabilities.argmax(axis=1))

    def of(self, splits: Sequence[str]) -> Predictions:
        """Only the examples that these splits tested."""
        keep = np.flatnonzero(np.isin(self.splits, list(splits)))
        pick = lambda values: tuple(values[i] for i in keep)  # noqa: E731
        return Predictions(
            self.labels[keep],
            self.probabilities[keep],
            pick(self.groups),
            pick(self.ids),
            pick(self.splits),
            self.positive,
        )


def pooled(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of several splits as one, each image tested once."""
    return Predictions(
        np.concatenate([p.labels for p in parts]),
        np.concatenate([p.probabilities for p in parts]),
        tuple(g for p in parts for g in p.groups),
        tuple(i for p in parts for i in p.ids),
        tuple(s for p in parts for s in p.splits),
        parts[0].positive,
    )


def confusion(predictions: Predictions, weights: Floats | None = None) -> Floats:
    """(K, K) counts, or (R, K, K) for weights (R, N)."""
    classes = predictions.probabilities.shape[1]
    cells = np.eye(classes * classes)[predictions.labels * classes + predictions.predicted]  # (N, K * K)
    counts = cells.sum(axis=0) if weights is None else weights @ cells
    return np.asarray(counts.reshape(*counts.shape[:-1], classes, classes))


def view(counts: Floats, name: str, positive: int | None) -> dict[str, Floats]:
    """Accuracy, precision, recall and F1 of confusion counts (..., K, K) in the view `paper` or `ultrasam`.

    A class without examples or predictions scores 0, as scikit-learn does with `zero_division=0`; in the macro
    view a class that occurs neither as label nor as prediction is left out.
    """
    true, predicted = counts.sum(axis=-1), counts.sum(axis=-2)  # (..., K)
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    accuracy = _ratio(hit.sum(axis=-1), true.sum(axis=-1))
    if name == "paper" and positive is None:
        return {"accuracy": accuracy, "precision": accuracy, "recall": accuracy, "f1": accuracy}
    each = {"precision": _ratio(hit, predicted), "recall": _ratio(hit, true), "f1": _ratio(2 * hit, true + predicted)}
    if name == "paper":
        return {"accuracy": accuracy, **{key: values[..., positive] for key, values in each.items()}}
    occurs = (true + predicted) > 0
    return {
        "accuracy": accuracy,
        **{k: _ratio((v * occurs).sum(axis=-1), occurs.sum(axis=-1)) for k, v in each.items()},
    }


def balanced_accuracy(counts: Floats) -> Floats:
    """Mean recall over the classes that occur."""
    true = counts.sum(axis=-1)
    recall = _ratio(np.diagonal(counts, axis1=-2, axis2=-1), true)
    return _ratio(recall.sum(axis=-1), (true > 0).sum(axis=-1))


def auroc(predictions: Predictions, weights: Floats | None = None) -> Floats:
    """Area under the ROC curve, macro over one-against-rest for K > 2; (R,) for weights (R, N), else a scalar.

    A class that lacks positives or negatives is left out; NaN where none remains.
    """
    rows = np.ones((1, len(predictions.labels))) if weights is None else weights
    classes = [1] if predictions.probabilities.shape[1] == 2 else range(predictions.probabilities.shape[1])
    areas = np.stack([_area(predictions.labels == k, predictions.probabilities[:, k], rows) for k in classes])
    defined = ~np.isnan(areas)
    area = np.where(defined.any(axis=0), _ratio(np.nansum(areas, axis=0), defined.sum(axis=0)), np.nan)
    return area if weights is not None else area[0]


def auroc_by_split(predictions: Predictions, weights: Floats | None = None) -> Floats:
    """Mean over the splits of each one's area: scores of models that were fitted apart need not share a scale."""
    names = list(dict.fromkeys(predictions.splits))
    if len(names) < 2:
        return auroc(predictions, weights)
    inside = [np.array([s == name for s in predictions.splits]) for name in names]
    areas = [
        auroc(predictions.of([name]), None if weights is None else weights[:, mask])
        for name, mask in zip(names, inside, strict=True)
    ]
    defined = ~np.isnan(areas)
    mean: Floats = np.where(defined.any(axis=0), _ratio(np.nansum(areas, axis=0), defined.sum(axis=0)), np.nan)
    return mean if weights is not None else mean[()]


def _area(positive: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Weighted probability that a positive outranks a negative, ties counting half: (R,)."""
    values, inverse = np.unique(scores, return_inverse=True)
    steps = np.zeros((len(scores), len(values)))
    steps[np.arange(len(scores)), inverse] = 1.0
    above, below = (weights * positive) @ steps, (weights * ~positive) @ steps  # (R, U)
    pairs = above.sum(axis=1) * below.sum(axis=1)
    won = (above * (below.cumsum(axis=1) - below / 2)).sum(axis=1)
    return np.where(pairs > 0, won / np.maximum(pairs, 1e-12), np.nan)


def calibration(predictions: Predictions) -> dict[str, float]:
    """Expected calibration error of the most likely class (15 equal bins) and the Brier score over all classes."""
    confidence = predictions.probabilities.max(axis=1)
    right = predictions.predicted == predictions.labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    truth = np.eye(predictions.probabilities.shape[1])[predictions.labels]
    brier = ((predictions.probabilities - truth) ** 2).sum(axis=1).mean()
    return {"expected_calibration_error": float(np.sum(gaps)), "brier": float(brier)}


def resampled(groups: Sequence[str], resamples: int, seed: int) -> Floats:
    """(R, N) how often each example is drawn when whole patients are drawn with replacement."""
    names, inverse = np.unique(groups, return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return draws[:, inverse].astype(float)


def measures(predictions: Predictions, weights: Floats | None = None) -> dict[str, Floats]:
    """Every measure with an interval by dotted name, such as `paper.f1`; scalars, or (R,) for weights."""
    counts = confusion(predictions, weights)
    by_view = {f"{v}.{k}": x for v in ("paper", "ultrasam") for k, x in view(counts, v, predictions.positive).items()}
    areas = {"auroc": auroc(predictions, weights), "auroc_by_split": auroc_by_split(predictions, weights)}
    return {**by_view, "balanced_accuracy": balanced_accuracy(counts), **areas}


def score(runs: Predictions | Sequence[Predictions], resamples: int = 1000, seed: int = 42) -> dict[str, Any]:
    """Everything reported about one model: measures with 95 % patient-bootstrap intervals, confusion, calibration.

    Given several runs on the same examples (seeds), each measure is the mean over the runs, its interval that of the
    mean under resampled patients, `spread` the standard deviation over the runs; confusion counts are summed.
    """
    several = [runs] if isinstance(runs, Predictions) else list(runs)
    weights = resampled(several[0].groups, resamples, seed)
    points = [measures(run) for run in several]
    drawn = [measures(run, weights) for run in several]
    calibrated = [calibration(run) for run in several]
    scores: dict[str, Any] = {
        "examples": len(several[0].labels),
        "patients": len(set(several[0].groups)),
        "runs": len(several),
        "confusion": sum(confusion(run) for run in several).astype(int).tolist(),  # type: ignore[union-attr]
        **{name: float(np.mean([c[name] for c in calibrated])) for name in calibrated[0]},
    }
    for name in points[0]:
        values = [float(p[name]) for p in points]
        scores[name] = _interval(float(np.mean(values)), np.mean([d[name] for d in drawn], axis=0))
        if len(several) > 1:
            scores[name]["spread"] = float(np.std(values, ddof=1))
    return scores


def _interval(point: float, drawn: Floats) -> dict[str, float]:
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if not np.isnan(drawn).all() else (np.nan, np.nan)
    return {"value": point, "low": float(low), "high": float(high)}


def compare(
    first: Predictions, second: Predictions, measure: str, resamples: int = 1000, seed: int = 42
) -> Mapping[str, float]:
    """Paired test of two models on the same examples: difference first - second with interval, p values.

    `p_bootstrap` is two-sided over patients; `p_mcnemar` is the exact McNemar test over images (patients with several
    images make it too sure of itself).
    """
    from scipy.stats import binomtest

    if first.ids != second.ids:
        raise ValueError("a paired test needs the same examples in the same order")
    weights = resampled(first.groups, resamples, seed)
    drawn = measures(first, weights)[measure] - measures(second, weights)[measure]
    drawn = drawn[~np.isnan(drawn)]
    right, other = first.predicted == first.labels, second.predicted == second.labels
    only_first, only_second = int((right & ~other).sum()), int((~right & other).sum())
    tail = min((drawn <= 0).mean(), (drawn >= 0).mean()) if len(drawn) else 0.5
    return {
        "difference": float(measures(first)[measure] - measures(second)[measure]),
        "low": float(np.percentile(drawn, 2.5)) if len(drawn) else float("nan"),
        "high": float(np.percentile(drawn, 97.5)) if len(drawn) else float("nan"),
        "p_bootstrap": float(min(1.0, 2 * max(tail, 1 / (len(drawn) + 1)))),
        "only_first_right": only_first,
        "only_second_right": only_second,
        "p_mcnemar": float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0,
    }


def _ratio(top: Any, bottom: Any) -> Floats:
    bottom = np.asarray(bottom, float)
    return np.asarray(np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom > 0))
