"""A line chart as SVG under a strict content policy: colours come from classes, long series are thinned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 190, 46, 8, 8, 24
POINTS = 160  # more than a screen tells apart
COLOURS = 8


def line_chart(series: Mapping[str, Sequence[float | None]], labels: Sequence[int], title: str) -> Markup:
    """One line per name over the same labels (round numbers); None leaves a gap; empty without a value."""
    keep = _thinned(len(labels))
    values = [v for line in series.values() for v in (line[i] for i in keep) if v is not None]
    if not values:
        return Markup("")
    low, high = _padded(min(values), max(values))

    def at(i: int, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (i / max(1, len(labels) - 1))
        return f"{x:.1f},{TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low)):.1f}"

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    parts += _scale(low, high)
    for i in sorted({0, len(labels) // 2, len(labels) - 1}):
        x = at(i, low).split(",")[0]
        anchor = "start" if i == 0 and len(labels) > 1 else "end" if i == len(labels) - 1 > 0 else "middle"
        parts.append(f'<text x="{x}" y="{HEIGHT - 6}" text-anchor="{anchor}">round {labels[i]}</text>')
    for number, line in enumerate(series.values()):
        parts += _line([[at(i, v) for i, v in run] for run in _runs(line, keep)], _look(number))
    legend = [f'<li><i class="{_look(number)}"></i>{escape(name)}</li>' for number, name in enumerate(series)]
    return Markup("".join([*parts, "</svg>", '<ul class="legend">', *legend, "</ul>"]))


def _thinned(count: int) -> list[int]:
    """Indices to draw: all, or evenly spaced ones that hold the first and the last."""
    if count <= POINTS:
        return list(range(count))
    return sorted({round(i * (count - 1) / (POINTS - 1)) for i in range(POINTS)})


def _padded(low: float, high: float) -> tuple[float, float]:
    space = 0.08 * ((high - low) or abs(high) or 1.0)
    return low - space, high + space


def _scale(low: float, high: float) -> list[str]:
    parts = []
    digits = max(0, 2 - math.floor(math.log10(high - low)))
    for step in range(5):
        value = low + (high - low) * step / 4
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - step / 4)
        parts.append(f'<line class="grid-line" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{value:.{digits}f}</text>')
    return parts


def _runs(line: Sequence[float | None], keep: Sequence[int]) -> list[list[tuple[int, float]]]:
    """The drawn points, parted where a value is missing."""
    runs: list[list[tuple[int, float]]] = [[]]
    for i in keep:
        value = line[i]
        if value is None:
            runs.append([])
        else:
            runs[-1].append((i, value))
    return [run for run in runs if run]


def _look(number: int) -> str:
    """Class of a line; dashed where the colours begin again."""
    return f"s{number % COLOURS}" + (" again" if number >= COLOURS else "")


def _line(runs: list[list[str]], look: str) -> list[str]:
    parts = [f'<polyline class="line {look}" points="{" ".join(run)}"/>' for run in runs if len(run) > 1]
    for run in runs:
        if len(run) == 1:  # a line of one point would not show
            x, y = run[0].split(",")
            parts.append(f'<circle class="line {look}" cx="{x}" cy="{y}" r="2.5"/>')
    return parts
