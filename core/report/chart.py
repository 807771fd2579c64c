"""A line chart as inline SVG: readable in print, by colour-blind people, and without a script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 260, 56, 34, 14, 150
COLOURS = ("#0b6e99", "#c2410c", "#4d7c0f", "#7e22ce", "#b45309", "#0f766e", "#be123c", "#475569")
DASHES = ("", "6 3", "2 3", "8 3 2 3")


def line_chart(
    series: Mapping[str, Sequence[float | None]], labels: Sequence[str], y_title: str = "", x_title: str = ""
) -> Markup:
    """One line per name over equally spaced labels; None leaves a gap."""
    values = [v for line in series.values() for v in line if v is not None]
    if not values:
        return Markup("<p>no values</p>")
    marks = round_marks(min(values), max(values))
    low, high = marks[0], marks[-1]

    def x(i: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (i / max(1, len(labels) - 1))

    def y(v: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (v - low) / (high - low))

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_title)}" class="chart">']
    for v in marks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>')
    every = max(1, len(labels) // 8)
    for i in range(0, len(labels), every):
        parts.append(f'<text x="{x(i):.1f}" y="{HEIGHT - 16}" text-anchor="middle">{escape(labels[i])}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 2}" text-anchor="middle">{escape(x_title)}</text>'
    )
    parts.append(f'<text class="title" x="{LEFT}" y="10">{escape(y_title)}</text>')
    for number, (name, line) in enumerate(series.items()):
        parts += _line(name, [(x(i), y(v)) for i, v in enumerate(line) if v is not None], number)
    return Markup("".join([*parts, "</svg>"]))


def round_marks(low: float, high: float) -> list[float]:
    """Round numbers in equal steps of 1, 2 or 5 times a power of ten, from one below `low` to one above `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if span <= 6 * factor * power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _line(name: str, points: Sequence[tuple[float, float]], number: int) -> list[str]:
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    legend = TOP + 12 + 18 * number
    x = WIDTH - RIGHT + 14
    return [
        f'<polyline fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}" points="{path}"/>',
        *(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="{colour}"/>' for a, b in points),
        f'<line x1="{x}" x2="{x + 20}" y1="{legend}" y2="{legend}" stroke="{colour}" stroke-width="2" '
        f'stroke-dasharray="{dash}"/><text x="{x + 26}" y="{legend + 4}">{escape(name)}</text>',
    ]
