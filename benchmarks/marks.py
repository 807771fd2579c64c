"""What devices draw over a scan, in the forms seen on real ones: calipers, measurements, scales, arrows, frames of windows."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Points = list[NDArray[np.float64]]  # each (x, y)


@dataclass
class Pen:
    """Draws on a layer of `unit` pixels to a pixel of the picture: 3 gives soft strokes, 1 those of a bitmap."""

    layer: NDArray[np.uint8]
    unit: int
    thick: int  # pixels of the layer, as all places below

    def line(self, *points: tuple[float, float], closed: bool = False) -> None:
        corners = np.array(points).round().astype(np.int32)
        cv2.polylines(self.layer, [corners], closed, 255, self.thick)

    def dots(self, points: NDArray[np.float64], gap: float, dash: float = 0) -> None:
        """Dots, or dashes, along a path (N, 2)."""
        steps = np.hypot(*np.diff(points, axis=0).T)
        along = np.concatenate([[0.0], np.cumsum(steps)])
        starts = np.arange(0, along[-1], gap)
        for start, end in zip(starts, starts + dash, strict=True):
            ends = [(np.interp(t, along, points[:, 0]), np.interp(t, along, points[:, 1])) for t in (start, end)]
            if dash:
                self.line(*ends)
            else:
                x, y = (int(v) for v in ends[0])
                self.layer[max(0, y) : y + self.thick, max(0, x) : x + self.thick] = 255


def caliper(pen: Pen, place: NDArray[np.float64], arm: float, gap: float, form: str) -> None:
    """One end of a measurement: a cross with or without a gap in its middle, upright or oblique, its arms perhaps
    dotted; a diamond, a T."""
    x, y = place
    turned = [np.array([np.cos(a), np.sin(a)]) for a in np.arange(4) * np.pi / 2 + (np.pi / 4 if "x" in form else 0)]
    if form == "diamond":
        pen.line(*(tuple(place + arm * d) for d in turned), closed=True)
    elif form == "T":
        pen.line((x - arm, y), (x + arm, y))
        pen.line((x, y), (x, y + arm))
    else:
        for d in turned:
            first, last = place + gap * d, place + arm * d
            if "dotted" in form:
                pen.dots(np.stack([first, last]), 2.5 * pen.thick)
            else:
                pen.line(tuple(first), tuple(last))


def mark(side: int, rng: Rng) -> tuple[NDArray[np.uint8], Points]:
    """One graphic (side, side) 0..255, and the places (x, y) beside which a number may stand."""
    unit = int(rng.choice([1, 3]))
    thick = int(rng.integers(1, 3) if unit == 1 else rng.integers(2, 7))
    pen = Pen(np.zeros((side * unit,) * 2, np.uint8), unit, thick)
    numbered = KINDS[int(rng.integers(len(KINDS)))](pen, rng)
    small = cv2.resize(pen.layer, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8), [place / unit for place in numbered]


def _two(pen: Pen, rng: Rng) -> NDArray[np.float64]:
    return np.asarray(rng.uniform(0, len(pen.layer), (2, 2)))


def _line(pen: Pen, rng: Rng) -> Points:
    first, last = _two(pen, rng)
    pen.line((first[0], first[1]), (first[0] if rng.random() < 0.5 else last[0], last[1]))
    return []


def _caliper(pen: Pen, rng: Rng) -> Points:
    return _measured(pen, rng, _two(pen, rng)[:1])


def _measurement(pen: Pen, rng: Rng) -> Points:
    ends = _two(pen, rng)
    if rng.random() < 0.8:
        pen.dots(ends, pen.unit * rng.uniform(3, 11), 0 if rng.random() < 0.8 else pen.unit * 2.5)
    return _measured(pen, rng, ends)


def _measured(pen: Pen, rng: Rng, ends: NDArray[np.float64]) -> Points:
    arm, gap = pen.unit * rng.uniform(2, 9), 0.0 if rng.random() < 0.6 else pen.unit * rng.uniform(1, 2.5)
    form = str(rng.choice(["+", "+", "+", "x", "x", "+dotted", "xdotted", "diamond", "T"]))
    for place in ends:
        caliper(pen, place, arm + gap, gap, form)
    return [place + (arm + gap + pen.unit) for place in ends]


def _path(pen: Pen, rng: Rng, path: NDArray[np.float64], whole: float, dash: float) -> Points:
    """A path as a whole line, so often, or else in dots (`dash` 0) or dashes."""
    if rng.random() < whole:
        pen.line(*((x, y) for x, y in path))
    else:
        pen.dots(path, pen.unit * rng.uniform(*((5, 10) if dash else (3, 9))), pen.unit * dash)
    return []


def _ellipse(pen: Pen, rng: Rng) -> Points:
    centre, axes = _two(pen, rng)[0], pen.unit * rng.uniform(6, 40, 2)
    outline = cv2.ellipse2Poly([int(v) for v in centre], [int(v) for v in axes], int(rng.integers(0, 180)), 0, 360, 6)
    return _path(pen, rng, np.asarray(outline, np.float64), 0.5, 0)


def _box(pen: Pen, rng: Rng) -> Points:
    (x, y), (x1, y1) = _two(pen, rng)
    return _path(pen, rng, np.array([(x, y), (x1, y), (x1, y1), (x, y1), (x, y)]), 0.7, rng.uniform(2, 5))


def _window(pen: Pen, rng: Rng) -> Points:
    """The frame of a colour window: two arcs and two lines."""
    apex = np.array([_two(pen, rng)[0, 0], -pen.unit * rng.uniform(10, 150)])
    near, far = np.sort(rng.uniform(0.2, 1.4, 2)) * len(pen.layer) - apex[1]
    angles = np.linspace(-1, 1, 24) * rng.uniform(0.2, 0.7)
    arcs = [apex + r * np.stack([np.sin(angles), np.cos(angles)], 1) for r in (near, far)]
    _path(pen, rng, np.concatenate([arcs[0], arcs[1][::-1], arcs[0][:1]]), 0.5, rng.uniform(2, 5))
    pen.layer = np.ascontiguousarray(np.rot90(pen.layer, int(rng.integers(4))))
    return []


def _pointer(pen: Pen, rng: Rng) -> Points:
    """A triangle that points at the depth of focus."""
    tip, reach = _two(pen, rng)[0], pen.unit * rng.uniform(3, 8)
    back = np.array([rng.choice([-1, 1]) * reach, 0.6 * reach])
    head = np.array([tip, tip + back, tip + back * np.array([1, -1])])
    cv2.fillPoly(pen.layer, [head.round().astype(np.int32)], 255)
    return []


def _ruler(pen: Pen, rng: Rng) -> Points:
    """A depth or width scale: ticks, dots or diamonds, every fifth or tenth longer; where numbers may stand."""
    size, unit = len(pen.layer), pen.unit
    gap, length = unit * rng.uniform(6, 34), unit * float(rng.choice([0, 0, 1, 2, 3, 5, 8]))
    every, x = int(rng.choice([0, 4, 5, 10])), unit * rng.uniform(0, size / unit)
    form, numbered = str(rng.choice(["tick", "tick", "tick", "diamond"])), []
    upright = rng.random() < 0.3
    for number, y in enumerate(np.arange(rng.uniform(0, gap), size, gap)):
        major = bool(every and number % every == 0)
        reach = length + unit * (4 * major + 1)
        ends = [(x, y), (x + reach, y)] if not upright else [(y, x), (y, x + reach)]
        if form == "tick":
            pen.line(*ends)
        else:
            caliper(pen, np.array(ends[0]), unit * (1.5 + major), 0, "diamond")
        if major:
            numbered.append(np.array(ends[1]) + 2 * unit)
    return numbered if rng.random() < 0.7 else []


def _arrow(pen: Pen, rng: Rng) -> Points:
    tail = _two(pen, rng)[0]
    angle, length, unit = rng.uniform(0, 2 * np.pi), rng.uniform(12, 34), pen.unit
    along = np.array([np.cos(angle), np.sin(angle)]) * unit
    tip = tail + length * along
    if rng.random() < 0.6:
        start, end = ([int(v) for v in point.round()] for point in (tail, tip))
        cv2.arrowedLine(pen.layer, start, end, 255, pen.thick + unit // 2, cv2.LINE_8, 0, float(rng.uniform(0.25, 0.5)))
        return []
    neck, across = tip - rng.uniform(6, 14) * along, rng.uniform(3, 8) * np.array([-along[1], along[0]])
    if rng.random() < 0.6:
        cv2.fillPoly(pen.layer, [np.array([tip, neck + across, neck - across]).round().astype(np.int32)], 255)
    else:
        pen.line(tuple(tip), tuple(neck + across), tuple(neck - across), closed=True)
    if rng.random() < 0.6:
        pen.line(tuple(tail), tuple(neck))
    return []


KINDS = (
    _line, _caliper, _caliper, _measurement, _measurement, _ellipse, _arrow, _arrow, _ruler, _ruler, _box, _window, _pointer,
)  # fmt: skip
