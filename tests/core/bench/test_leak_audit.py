"""Attacks on what a model gives away: their figures, their intervals, and that they can fail."""

from __future__ import annotations

import math

import numpy as np
import pytest

from usfmae.core.bench import leak_audit
from usfmae.core.bench.leak_audit import area, by_patient, epsilon_bound, separation, span


def test_the_area_is_that_of_every_pair() -> None:
    random = np.random.default_rng(0)
    members, others = random.integers(0, 9, 40) + 1.0, random.integers(0, 9, 30) * 1.0
    pairs = [(m > o) + (m == o) / 2 for m in members for o in others]
    assert area(members, others) == pytest.approx(np.mean(pairs))


def test_what_is_separate_alarms_and_what_is_not_does_not() -> None:
    random = np.random.default_rng(1)
    apart = separation(random.normal(2, 1, 60), random.normal(0, 1, 60))
    assert apart.low > 0.8 and apart.chance < 0.01
    alike = separation(random.normal(0, 1, 60), random.normal(0, 1, 60))
    assert alike.low < 0.5 < alike.high and alike.chance > 0.01


def test_a_patient_is_the_mean_of_their_images() -> None:
    assert by_patient(np.array([1.0, 3.0, 10.0]), ["a", "a", "b"]).tolist() == [2.0, 10.0]


def test_the_bound_of_epsilon_is_clopper_and_pearsons() -> None:
    assert epsilon_bound(50, 100) == 0.0
    assert epsilon_bound(0, 10) == 0.0
    # All of n right: the share p with p^n = 5 %.
    share = 0.05 ** (1 / 20)
    assert epsilon_bound(20, 20) == pytest.approx(math.log(share / (1 - share)), rel=1e-6)
    assert 0 < epsilon_bound(70, 100) < math.log(0.7 / 0.3)


def outer(patches: np.ndarray, seed: int, noise: float = 0.0) -> np.ndarray:
    """A gradient of a projection: an outer product a patch."""
    random = np.random.default_rng(seed)
    change = random.normal(size=(96, len(patches))) @ patches
    return np.asarray(change + noise * np.abs(change).max() * random.normal(size=change.shape))


@pytest.mark.parametrize("count", [1, 4, 32])
def test_a_change_made_of_few_patches_spans_them(count: int) -> None:
    random = np.random.default_rng(2)
    drawn, others = random.normal(size=(64, 192)), random.normal(size=(64, 192))
    seen = span(outer(drawn[:count], 3, noise=1e-3), drawn, others)
    assert seen.advantage > 20 and seen.patch < count
    assert (seen.rank_one > 0.9) == (count == 1)
    assert span(outer(drawn[:count], 3), drawn, others).beyond_few < 1e-20


def test_a_change_made_of_thousands_spans_nobody_better() -> None:
    random = np.random.default_rng(4)
    smooth = random.normal(size=(12, 192))
    patches = random.normal(size=(3000, 12)) @ smooth + 0.3 * random.normal(size=(3000, 192))
    seen = span(outer(patches[:2000], 5), patches[:500], patches[2000:2500])
    assert seen.advantage < 10 and seen.rank_one < 0.9 and seen.beyond_few > 1e-3


def test_the_worst_attack_is_the_one_that_surely_tells_most() -> None:
    random = np.random.default_rng(6)
    near, far = random.normal(size=50), random.normal(size=50) + 3
    report = leak_audit.report({"a": (near, near), "b": (far, near)}, ([str(i) for i in range(50)],) * 2)
    assert leak_audit.worst(report)["auc"] == report["b"]["patients"]["auc"] > 0.9
