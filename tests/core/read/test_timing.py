"""Frames are chosen by time, at 3 per second unless asked otherwise."""

from __future__ import annotations

import pytest

from usfmae.core.read.timing import kept_indices, steady_times


@pytest.mark.parametrize(
    ("frames", "rate", "kept"), [(100, 25, 12), (60, 30, 6), (60, 29.97, 6), (10, 2, 10), (1, 50, 1), (9, 3, 9)]
)
def test_three_a_second(frames: int, rate: float, kept: int) -> None:
    assert len(kept_indices(steady_times(frames, rate), 3)) == kept


def test_a_clip_of_33_333_ms_keeps_every_tenth_frame() -> None:
    assert kept_indices(steady_times(60, 1000 / 33.333), 3) == [0, 10, 20, 30, 40, 50]


def test_uneven_times_are_followed_and_a_gap_is_not_made_up_for() -> None:
    times = [0.0, 0.1, 0.2, 0.4, 0.5, 5.0, 5.01, 5.02, 5.4]
    assert kept_indices(times, 3) == [0, 3, 5, 8]
