"""The line chart of pages and reports."""

from __future__ import annotations

import re

from usfmae.core.web.chart import POINTS, REPORT, line_chart, round_marks


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


def test_the_marks_are_round_enclose_the_values_and_tell_close_ones_apart() -> None:
    for values in ([0.3121, 0.3124], [3, 71], [-0.02, 0.3], [5, 5], [0, 0], [1e-7, 2e-7]):
        marks = round_marks(min(values), max(values))
        assert marks[0] <= min(values) <= max(values) <= marks[-1] and 2 <= len(marks) <= 8
        assert len({f"{mark:g}" for mark in marks}) == len(marks)
