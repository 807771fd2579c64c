"""Charts: marks that a person can read, lines that stay inside."""

from __future__ import annotations

import re

import pytest

from usfmae.core.report.chart import BOTTOM, HEIGHT, TOP, line_chart, round_marks


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (47.5, 61.7, [45, 50, 55, 60, 65]),
        (1e-5, 3e-5, [1e-5, 1.5e-5, 2e-5, 2.5e-5, 3e-5]),
        (0.07, 2.9, [0, 0.5, 1, 1.5, 2, 2.5, 3]),
        (-0.3, 0.2, [-0.3, -0.2, -0.1, 0, 0.1, 0.2]),
        (5.0, 5.0, [5, 6]),
        (0.0, 0.0, [0, 0.2]),
    ],
)
def test_marks_are_round_and_enclose_the_values(low: float, high: float, marks: list[float]) -> None:
    assert round_marks(low, high) == pytest.approx(marks)


def test_a_line_stays_between_its_marks_and_a_gap_is_left_out() -> None:
    svg = line_chart({"a": [0.07, None, 2.9]}, ["1", "2", "3"], "loss", "step")
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', svg)]
    assert len(heights) == 2 and all(TOP <= y <= HEIGHT - BOTTOM for y in heights)
    assert heights[0] > heights[1]
