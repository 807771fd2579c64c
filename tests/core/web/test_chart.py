"""The line chart of pages and reports."""

from __future__ import annotations

import re

import pytest

from usfmae.core.web.chart import BOTTOM, PAGE, POINTS, REPORT, TOP, Axis, line_chart, round_marks


def lines(svg: str) -> list[int]:
    """How many points each line has."""
    return [len(points.split()) for points in re.findall(r'<polyline[^>]*points="([^"]*)"', svg)]


def test_a_line_goes_on_where_a_value_is_missing() -> None:
    assert lines(line_chart({"a": [1, None, 3], "b": [None, 2, None]}, [1, 2, 3], "loss")) == [2, 1]


def test_one_value_shows_as_a_dot_and_none_as_nothing() -> None:
    assert '<circle class="line s0"' in line_chart({"a": [0.5]}, [1], "loss")
    assert line_chart({"a": [None]}, [1], "loss") == "" == line_chart({}, [], "loss")


def test_names_and_titles_from_elsewhere_are_escaped() -> None:
    svg = line_chart({"<script>": [1, 2]}, ["<b>", "y"], '"><x', "<i>", REPORT)
    assert not re.search(r"<script>|<b>|<i>|\"><x", svg) and "&lt;script&gt;" in svg


def test_hundreds_of_rounds_are_thinned_and_keep_their_ends() -> None:
    svg = line_chart({"a": [float(i) for i in range(500)]}, list(range(1, 501)), "loss", "round")
    assert lines(svg) == [POINTS]
    assert ">round 1<" in svg and ">500<" in svg


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


def test_a_line_stays_between_its_marks() -> None:
    svg = line_chart({"a": [0.07, None, 2.9]}, [1, 2, 3], "loss")
    heights = [float(y) for y in re.findall(r'<circle class="line[^>]*cy="([\d.]+)"', svg)]
    assert len(heights) == 2 and all(TOP <= y <= PAGE[1] - BOTTOM for y in heights)
    assert heights[0] > heights[1]


@pytest.mark.parametrize("absurd", [1e308, float("inf"), float("nan")], ids=str)
def test_a_figure_that_cannot_be_drawn_is_left_out(absurd: float) -> None:
    sound = line_chart({"loss": [1.0, None, 0.5]}, [1, 2, 3], "Loss")
    assert line_chart({"loss": [1.0, absurd, 0.5]}, [1, 2, 3], "Loss") == sound
    assert line_chart({"loss": [absurd]}, [1], "Loss") == ""


def test_signs_are_whole_and_per_cent_reads_as_such() -> None:
    svg = line_chart({"breast": [-0.025, 0.005]}, ["seed", 1], "forgetting", "round", PAGE, Axis(percent=True))
    assert "\u22123 %</text>" in svg and "0 %</text>" in svg and ">-" not in svg
    for x, text in re.findall(r'<text x="([\d.-]+)" y="[\d.]+" text-anchor="end">([^<]*)</text>', svg):
        assert float(x) - 10 * len(text) > 0, f"{text} is cut at the left edge"


def test_level_lines_are_named_and_within_the_chart() -> None:
    svg = line_chart({"a": [0.0, 0.01]}, [1, 2], "forgetting", axis=Axis(True, {"budget": 0.05, "seed": 0.0}))
    heights = [float(y) for y in re.findall(r'<line class="limit" x1[^>]*y1="([\d.]+)"', svg)]
    assert len(heights) == 2 and all(TOP <= y <= PAGE[1] - BOTTOM for y in heights)
    assert "budget: 5 %</li>" in svg and "5 %</text>" in svg


def test_each_value_tells_itself_where_somebody_points_at_it() -> None:
    svg = line_chart({"<b>": [0.5, None, 0.25]}, [1, 2, 3], "loss", "round")
    assert re.findall(r"<title>([^<]*)</title>", svg) == ["&lt;b&gt;, round 1: 0.5", "&lt;b&gt;, round 3: 0.25"]


@pytest.mark.parametrize(("count", "marked"), [(1, [0]), (6, [0, 1, 2, 3, 4, 5]), (12, [0, 2, 4, 6, 8, 10])])
def test_labels_stand_at_equal_distances(count: int, marked: list[int]) -> None:
    svg = line_chart({"a": [1.0] * count}, list(range(count)), "loss")
    assert [int(text) for text in re.findall(rf'y="{PAGE[1] - 8}"[^>]*>(\d+)</text>', svg)] == marked
