"""Order: every image once an epoch, a function of seed and step, data sets levelled where asked."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from usfmae.core.corpus.sampling import Sampler, shares


def stream(sampler: Sampler, steps: int) -> list[int]:
    return [int(p) for step in range(steps) for p in sampler.batch(step)]


@pytest.mark.parametrize("count, batch", [(20, 4), (21, 4), (3, 8)])
def test_every_image_is_seen_once_an_epoch(count: int, batch: int) -> None:
    positions = np.arange(100, 100 + count)
    seen = stream(Sampler(positions, [""] * 200, batch, seed=1), steps=3 * count)
    for epoch in range(3 * batch - 1):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == positions.tolist()


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    positions, names = np.arange(50), ["a"] * 20 + ["b"] * 30
    one = Sampler(positions, names, 7, seed=1, temperature=2)
    all_steps = [one.batch(step).tolist() for step in range(30)]
    assert [Sampler(positions, names, 7, seed=1, temperature=2).batch(s).tolist() for s in (29, 3)] == [
        all_steps[29],
        all_steps[3],
    ]
    assert Sampler(positions, names, 7, seed=2, temperature=2).batch(3).tolist() != all_steps[3]


def test_epochs_are_shuffled_anew() -> None:
    sampler = Sampler(np.arange(64), [""] * 64, 64, seed=1)
    assert sampler.batch(0).tolist() != sampler.batch(1).tolist()


@pytest.mark.parametrize("temperature", [1, 2, 5, 1000])
def test_data_sets_are_drawn_in_proportion_to_size_to_the_power_one_over_t(temperature: float) -> None:
    counts = {"big": 900, "small": 90, "tiny": 10}
    names = [name for name, count in counts.items() for _ in range(count)]
    seen = stream(Sampler(np.arange(1000), names, 100, seed=3, temperature=temperature), steps=10)
    drawn = Counter(names[p] for p in seen)
    weights = {name: count ** (1 / temperature) for name, count in counts.items()}
    for name, weight in weights.items():
        assert drawn[name] == pytest.approx(1000 * weight / sum(weights.values()), abs=1)
    # No image of a data set comes again before all of it was seen.
    repeats = Counter(p for p in seen if names[p] == "tiny")
    assert max(repeats.values()) - min(repeats.values()) <= 1 and len(repeats) == 10


def test_shares_keep_the_sum_and_give_each_data_set_a_draw() -> None:
    assert shares([5, 7, 1], 1) == [5, 7, 1]
    assert sum(shares([10_000, 3, 1], 1.7)) == 10_004
    assert min(shares([10_000, 1], 1)) == 1
