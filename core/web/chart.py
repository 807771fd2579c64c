"""A line chart as SVG, for pages and reports: no script, its colours from static/chart.css, long series thinned.

Colour-blind people and print tell lines apart by their dashes. The legend is a list below, so that it wraps on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

PAGE, REPORT = (560, 300), (760, 320)  # width and height, in units of which text is 13 high, on a phone 20
RIGHT, TOP, BOTTOM = 12, 18, 34
LIMIT = '<svg viewBox="0 0 24 8" aria-hidden="true"><line class="limit" x2="24" y1="4" y2="4"/></svg>'
CHARACTER = 10  # width of a sign on a phone
POINTS = 160  # more than a screen tells apart
DOTTED = 16  # lines of so few values show each as a dot
COLOURS = 8
LABELS = 6
LARGEST = 1e100

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """How the values of a chart read: `percent` shows 0.025 as 2.5 %; `limits` are level lines with a name."""

    percent: bool = False
    limits: Mapping[str, float] = field(default_factory=dict)

    def text(self, value: float) -> str:
        """A value as it is written at a mark, with a real minus sign."""
        number = f"{round(value * 100, 10):g} %" if self.percent else f"{value:g}"
        return number.replace("-", "\u2212")

    def exact(self, value: float) -> str:
        """A value as it is shown where somebody points at it."""
        number = f"{value * 100:+.2f} %" if self.percent else f"{value:.4g}"
        return number.replace("-", "\u2212")


PLAIN = Axis()


def line_chart(
    series: Mapping[str, Sequence[float | None]],
    labels: Sequence[object],
    title: str,
    x_title: str = "",
    size: tuple[int, int] = PAGE,
    axis: Axis = PLAIN,
) -> Markup:
    """One line per name over equally spaced labels; empty without a value.

    A line goes on where a value is None, not finite or beyond LARGEST: one absurd figure spoils no page.
    `title` is what a screen reader says; `x_title` stands before the labels. Each point tells its value on hover.
    """
    keep = _thinned(len(labels))
    shown = {name: [v if v is not None and abs(v) <= LARGEST else None for v in line] for name, line in series.items()}
    values = [v for line in shown.values() for v in (line[i] for i in keep) if v is not None]
    if not values:
        return Markup("")
    levels = [*values, *axis.limits.values()]
    (width, height), marks = size, round_marks(min(levels), max(levels))
    low, high = marks[0], marks[-1]
    left = 14 + CHARACTER * max(len(axis.text(mark)) for mark in marks)

    def at(i: int, value: float) -> Point:
        x = left + (width - left - RIGHT) * (i / max(1, len(labels) - 1))
        return x, TOP + (height - TOP - BOTTOM) * (1 - (value - low) / (high - low))

    # Marks of both axes.
    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    for value in marks:
        y = at(0, value)[1]
        parts.append(f'<line class="grid-line" x1="{left}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{escape(axis.text(value))}</text>')
    titled = next((i for i in _labelled(len(labels)) if not str(labels[i]).isalpha()), 0)  # not a name such as "seed"
    for i in _labelled(len(labels)):
        anchor = "end" if i == len(labels) - 1 > 0 else "start" if i == 0 else "middle"
        text = f"{x_title} {labels[i]}".strip() if i == titled else str(labels[i])
        parts.append(f'<text x="{at(i, low)[0]:.1f}" y="{height - 8}" text-anchor="{anchor}">{escape(text)}</text>')

    # Level lines, then the values.
    for value in axis.limits.values():
        y = at(0, value)[1]
        parts.append(f'<line class="limit" x1="{left}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for number, (name, line) in enumerate(shown.items()):
        points = [at(i, v) for i in keep if (v := line[i]) is not None]
        said = [f"{name}, {x_title} {labels[i]}: {axis.exact(v)}" for i in keep if (v := line[i]) is not None]
        parts += _line(points, said, _look(number))
    legend = [f"<li>{_sample(_look(number))}{escape(name)}</li>" for number, name in enumerate(series)]
    legend += [f"<li>{LIMIT}{escape(name)}: {axis.text(value)}</li>" for name, value in axis.limits.items()]
    return Markup("".join([*parts, "</svg>", '<ul class="legend">', *legend, "</ul>"]))  # noqa: S704


def _thinned(count: int) -> list[int]:
    """Indices to draw: all, or evenly spaced ones that hold the first and the last."""
    if count <= POINTS:
        return list(range(count))
    return sorted({round(i * (count - 1) / (POINTS - 1)) for i in range(POINTS)})


def _labelled(count: int) -> list[int]:
    """Indices that get a label: the first, every 1, 2, 5, 10 ... after it, and the last where there is room."""
    step = next(f * 10**power for power in range(9) for f in (1, 2, 5) if count <= LABELS * f * 10**power)
    labels = list(range(0, count, step))
    return [*labels, count - 1] if count - 1 - labels[-1] > step / 2 else labels


def round_marks(low: float, high: float) -> list[float]:
    """Round numbers in equal steps of 1, 2 or 5 times a power of ten, from one below `low` to one above `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if span <= 6 * factor * power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _look(number: int) -> str:
    """Classes of a line: eight colours, paler where they begin again."""
    return f"s{number % COLOURS}" + (" again" if number >= COLOURS else "")


def _sample(look: str) -> str:
    return f'<svg viewBox="0 0 24 8" aria-hidden="true"><line class="line {look}" x2="24" y1="4" y2="4"/></svg>'


def _line(points: Sequence[Point], said: Sequence[str], look: str) -> list[str]:
    """The line, a dot for each of few values, and around each value a spot that tells it on hover."""
    parts = [f'<polyline class="line {look}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>']
    if len(points) <= DOTTED:  # and a line of one point would not show at all
        parts += [f'<circle class="line {look}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points]
    for (x, y), text in zip(points, said, strict=True):
        parts.append(f'<circle class="spot" cx="{x:.1f}" cy="{y:.1f}" r="9"><title>{escape(text)}</title></circle>')
    return parts
