"""The metrics agree with scikit-learn, with the paper's arithmetic, and with common sense."""

from __future__ import annotations

import numpy as np
import pytest

from usfmae.core.bench.metrics import (
    Predictions,
    auroc,
    calibration,
    compare,
    confusion,
    measures,
    pooled,
    resampled,
    score,
    view,
)


def predictions(labels: np.ndarray, probabilities: np.ndarray, positive: int | None = None, groups=None) -> Predictions:
    n = len(labels)
    ids = tuple(map(str, range(n)))
    return Predictions(labels, probabilities, groups or ids, ids, ("fold-1",) * n, positive)


def random_predictions(n: int = 200, classes: int = 4, positive: int | None = None) -> Predictions:
    random = np.random.default_rng([n, classes])  # the same whichever tests ran before
    return predictions(random.integers(0, classes, n), random.dirichlet(np.ones(classes), n), positive)


def from_confusion(tp: int, fn: int, fp: int, tn: int) -> Predictions:
    labels = np.array([1] * (tp + fn) + [0] * (fp + tn))
    said = np.array([1] * tp + [0] * fn + [1] * fp + [0] * tn)
    return predictions(labels, np.eye(2)[said], positive=1)


def test_recovered_confusion_matrix_gives_the_papers_row_and_its_macro_f1() -> None:
    found = measures(from_confusion(tp=100, fn=22, fp=23, tn=231))
    paper = [round(100 * float(found[f"paper.{m}"]), 1) for m in ("precision", "recall", "f1")]
    assert paper == [81.3, 82.0, 81.6]
    assert round(100 * float(found["ultrasam.f1"]), 1) == 86.4


@pytest.mark.parametrize(("classes", "positive"), [(2, 1), (2, 0), (8, None)])
def test_both_views_agree_with_scikit_learn(classes: int, positive: int | None) -> None:
    from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support, roc_auc_score

    p = random_predictions(300, classes, positive)
    found = measures(p)
    average = "micro" if positive is None else "binary"
    for name, how in (("paper", average), ("ultrasam", "macro")):
        kwargs = {"pos_label": positive} if how == "binary" else {}
        expected = precision_recall_fscore_support(p.labels, p.predicted, average=how, zero_division=0, **kwargs)[:3]
        assert [found[f"{name}.{m}"] for m in ("precision", "recall", "f1")] == pytest.approx(expected)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(p.labels, p.predicted))
    scores = p.probabilities[:, 1] if classes == 2 else p.probabilities
    assert found["auroc"] == pytest.approx(roc_auc_score(p.labels, scores, multi_class="ovr"))


def test_resampled_measures_equal_those_of_the_repeated_examples() -> None:
    p = random_predictions(60, 3)
    weights = resampled(p.groups, 5, seed=1)
    for row in weights:
        again = np.repeat(np.arange(60), row.astype(int))
        repeated = predictions(p.labels[again], p.probabilities[again])
        for name, value in measures(p, row[None]).items():
            assert value[0] == pytest.approx(float(measures(repeated)[name])), name


def test_auroc_counts_ties_half() -> None:
    p = predictions(np.array([0, 1, 0, 1]), np.full((4, 2), 0.5))
    assert float(auroc(p)) == 0.5


def test_bootstrap_draws_whole_patients() -> None:
    weights = resampled(("a", "a", "b", "c", "c"), 50, seed=0)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 4]).all()


def test_intervals_widen_when_images_share_patients() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 40).repeat(10)
    probabilities = random.dirichlet(np.ones(2), 40).repeat(10, axis=0)
    alone = score(predictions(labels, probabilities, 1))["auroc"]
    together = score(predictions(labels, probabilities, 1, tuple(str(i // 10) for i in range(400))))["auroc"]
    assert together["value"] == alone["value"]
    assert together["high"] - together["low"] > 2 * (alone["high"] - alone["low"])


def test_a_95_percent_interval_covers_the_truth_about_that_often() -> None:
    # Accuracy 0.7 by construction; 200 repetitions of 150 images.
    covered = 0
    for seed in range(200):
        right = np.random.default_rng(seed).random(150) < 0.7
        p = predictions(np.zeros(150, int), np.eye(2)[(~right).astype(int)], 1)
        found = score(p, resamples=300, seed=seed)["ultrasam.accuracy"]
        covered += found["low"] <= 0.7 <= found["high"]
    assert 180 <= covered <= 199


def test_calibration_is_zero_for_honest_and_large_for_boastful_confidence() -> None:
    right = np.arange(1000) % 10 < 8
    labels = np.where(right, 0, 1)
    honest = predictions(labels, np.tile([0.8, 0.2], (1000, 1)))
    boastful = predictions(labels, np.tile([0.99, 0.01], (1000, 1)))
    assert calibration(honest)["expected_calibration_error"] == pytest.approx(0, abs=1e-9)
    assert calibration(boastful)["expected_calibration_error"] == pytest.approx(0.19, abs=1e-9)


def test_paired_test_sees_a_real_difference_and_none_between_twins() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 400)
    good = predictions(labels, np.eye(2)[np.where(random.random(400) < 0.9, labels, 1 - labels)], 1)
    poor = predictions(labels, np.eye(2)[np.where(random.random(400) < 0.6, labels, 1 - labels)], 1)
    found = compare(good, poor, "ultrasam.f1")
    assert found["low"] > 0 and found["p_bootstrap"] < 0.01 and found["p_mcnemar"] < 0.01
    same = compare(good, good, "ultrasam.f1")
    assert same["difference"] == 0 and same["p_bootstrap"] == 1 and same["p_mcnemar"] == 1


def test_paired_test_refuses_other_examples() -> None:
    with pytest.raises(ValueError, match="same examples"):
        compare(random_predictions(10), random_predictions(11), "auroc")


def test_views_differ_where_the_paper_compared_them() -> None:
    counts = confusion(from_confusion(100, 22, 23, 231))
    assert float(view(counts, "paper", 1)["f1"]) < float(view(counts, "ultrasam", 1)["f1"])


def test_pooling_folds_keeps_every_image_and_selects_by_split() -> None:
    a, b = random_predictions(10), random_predictions(7)
    b = Predictions(b.labels, b.probabilities, b.groups, b.ids, ("fold-2",) * 7)
    both = pooled([a, b])
    assert len(both.labels) == 17 and len(both.of(["fold-2"]).labels) == 7
