"""Gray overlay graphics over tissue: calipers, dotted lines, arrows, lines and boxes.

Ink differs from tissue in three ways that no beam can imitate: it is flat (one gray level along the stroke), sharp
(full contrast within a pixel or two) and thin.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from usfmae.core.clean.finding import Crop, Finding
from usfmae.core.clean.morphology import brightest_of, dilated, labelled, largest_of
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import Mask, Pixels

_STROKE = 7  # top-hat window: strokes narrower than this stand out
_LINE = 5  # the same for ruled lines; echoes of some length are thicker
CONTRAST = 60  # gray levels of ink above what surrounds it
_DOT_CONTRAST = 36
_MAX_CALIPERS = 12
_MAX_DOTS = 500
_SHORTEST_LINE = 7  # dots
_FARTHEST = 14  # pixels between two dots of a line
_BY_CHANCE = 0.1  # chains that scattered specks may form before a longer one is asked for

_HARDLY = 1e-4  # and before one is beyond doubt
_MANY, _LARGE = 20, 0.95  # bright grains from which ink must be told by its size; share of them that ink is larger than

_TICK, _TICK_SPAN, _TICK_GAP, _FEWEST_TICKS = 40, 14, (7, 90), 5  # gray levels; pixels; pixels; ticks of a ruler

_DRAWN, _DOUBTED = 0.85, 0.6  # the network's probabilities of a stroke
_FEW = 0.003  # share of a crop that doubted strokes take where they go too
_MANY_STROKES = 0.05  # share of a crop that strokes take where they must be layers of tissue
_WIDE, _STROKE_CONTRAST = 11, 12  # pixels of a filled head; gray levels

_REACH = 4  # pixels around the centre of a cross
_STRAIGHT = (
    (-4, 0),
    (4, 0),
    (0, -4),
    (0, 4),
)  # rows and columns from the centre: on the arms of + and between those of x
_OBLIQUE = ((-3, -3), (3, 3), (-3, 3), (3, -3))  # the other way round, as far from the centre
_AS_BRIGHT, _GAP = 0.6, 0.5
_LONGEST = 11  # pixels of an arm
_ROWS, _COLUMNS = abs(np.mgrid[-_LONGEST : _LONGEST + 1, -_LONGEST : _LONGEST + 1])
_PLUS, _TIMES = (_ROWS <= 2) | (_COLUMNS <= 2), abs(_ROWS - _COLUMNS) <= 3

Points = NDArray[np.float64]  # (N, 2) x, y


def ridge(gray: Pixels, window: int = _STROKE) -> Pixels:
    """Thin bright detail (H, W): the white top-hat."""
    return cv2.morphologyEx(gray, cv2.MORPH_TOPHAT, np.ones((window, window), np.uint8)).astype(np.uint8)


def _line(dx: int, dy: int, length: int) -> Pixels:
    kernel = np.zeros((length, length), np.uint8)
    middle = length // 2
    for t in range(-middle, middle + 1):
        kernel[middle + t * dy, middle + t * dx] = 1
    return kernel


def _along(thin: Pixels, dx: int, dy: int, length: int) -> Pixels:
    """The faintest detail along a line centred at each pixel, with one pixel of play (H, W)."""
    return cv2.dilate(cv2.erode(thin, _line(dx, dy, length)), np.ones((3, 3), np.uint8)).astype(np.uint8)


def _arms(thin: Pixels, x: int, y: int) -> Mask | None:
    """The arms (23, 23) of the + or x centred here, or None where it is neither.

    Four arms as bright as the centre leave it, with gaps between them: a bright grain has none.
    """
    around = cv2.getRectSubPix(thin, (2 * _REACH + 1, 2 * _REACH + 1), (x, y))
    near = cv2.dilate(around, np.ones((3, 3), np.uint8))
    for arms, gaps, lines in ((_STRAIGHT, _OBLIQUE, _PLUS), (_OBLIQUE, _STRAIGHT, _TIMES)):
        weakest = min(int(near[_REACH + row, _REACH + column]) for row, column in arms)
        between = sum(int(around[_REACH + row, _REACH + column]) for row, column in gaps) / 4
        if weakest > _AS_BRIGHT * int(near[_REACH, _REACH]) and between < _GAP * weakest:
            return np.asarray(lines)
    return None


def crosses(thin: Pixels) -> Points:
    """Centres (N, 2) of + and x with arms of at least three pixels."""
    # Where two lines cross, upright or oblique, each as bright as the other.
    mask = np.zeros(thin.shape, bool)
    for one, other in (((1, 0), (0, 1)), ((1, 1), (1, -1))):
        both = cv2.min(_along(thin, *one, 7), _along(thin, *other, 7))
        mask |= both > CONTRAST * 2 // 3

    # Small ones that have arms with gaps between them.
    _, _, stats, centres = labelled(mask)
    small = (stats[1:, cv2.CC_STAT_WIDTH] <= 9) & (stats[1:, cv2.CC_STAT_HEIGHT] <= 9)
    alone = [c for c in centres[1:][small] if _arms(thin, *(int(v) for v in c.round())) is not None]
    return np.asarray(alone[:_MAX_CALIPERS], np.float64).reshape(-1, 2)


def sharp_parts(bright: Pixels, thin: Pixels) -> Mask:
    """Flat, sharp, bright parts (H, W).

    Among many bright grains some are flat and sharp by chance: there a part must be larger than grains are.
    """
    # Of each part: its brightest level, and how much of it is nearly that bright.
    count, labels, stats, _ = labelled(thin > CONTRAST)
    ys, xs = np.nonzero(labels)
    which, level = labels[ys, xs], bright[ys, xs].astype(np.float64)
    top = largest_of(labels, bright, count)
    area = np.maximum(1, stats[:, cv2.CC_STAT_AREA])
    flat = np.bincount(which, level > 0.85 * top[which], count) / area

    # Ring two pixels outside: where ink is drawn it has fallen to tissue, where tissue shines it still glows.
    ring = dilated(labels > 0, 2) & ~dilated(labels > 0, 1)
    weight = ring.astype(np.float32)
    around = cv2.blur(bright * weight, (9, 9)) / np.maximum(1e-3, cv2.blur(weight, (9, 9)))
    outside = np.bincount(which, around[ys, xs], count) / area

    # Drawn is what is large, flat and falls off at once; among many grains only what is larger than they are.
    span = np.maximum(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT])
    large = (area >= 14) & (span >= 7)
    large[0] = False
    drawn = large & (flat > 0.55) & (top - outside > 90) & (top > 170)
    grains = area[large & ~drawn]
    if len(grains) > _MANY:
        drawn &= area > np.quantile(grains, _LARGE)
    return drawn[labels]


def dots_of(thin: Pixels) -> Points:
    """Centres (N, 2) of bright specks of up to six pixels in thin detail (H, W), the clearest first."""
    specks = (thin > _DOT_CONTRAST).astype(np.uint8)
    count, labels, stats, centres = cv2.connectedComponentsWithStats(specks, connectivity=4)
    span = np.maximum(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT])
    chosen = np.flatnonzero(span <= 6)
    clarity = largest_of(labels, thin, count)
    chosen = chosen[np.argsort(-clarity[chosen], kind="stable")][:_MAX_DOTS]
    return np.asarray(centres[chosen], np.float64)


def dotted(points: Points, shape: tuple[int, int]) -> tuple[Points, NDArray[np.bool_]]:
    """The end points (M, 2, 2) of every straight line of evenly spaced dots (N, 2), seven at least; and which of them
    are beyond doubt (M,)."""
    # Every pair of near points begins a line; the line must hold more points than chance would string up.
    x, y = points.T
    gap = (x[:, None] - x) ** 2 + (y[:, None] - y) ** 2
    first, last = np.nonzero((gap > 2.5**2) & (gap < _FARTHEST**2))
    end, hits = _followed(points, first, last, shape)
    long = hits >= shortest_line(len(points), len(first))
    surely = hits >= shortest_line(len(points), len(first), _HARDLY)
    return points[np.stack([first[long], end[long]], 1)], surely[long]


def _followed(
    points: Points, first: NDArray[np.intp], last: NDArray[np.intp], shape: tuple[int, int]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where the line through each pair of points (P,) ends, and how many points it holds.

    Every pair is followed in even steps, all pairs at once; one missing point is bridged.
    """
    # A map from pixels to points, so that a step looks its point up.
    places = np.full((shape[0] + 2, shape[1] + 2), -1)
    for row, column in np.ndindex(3, 3):  # a point may lie a pixel off
        places[points[:, 1].round().astype(int) + row, points[:, 0].round().astype(int) + column] = range(len(points))

    # All lines take a step at once; one that finds no point, not even behind a missing one, ends.
    steps, hits, active = np.ones(len(first)), np.full(len(first), 2), np.ones(len(first), bool)
    while active.any():
        moved = np.zeros(len(first), bool)
        stride = (points[last] - points[first]) / steps[:, None]
        for skip in (1, 2):
            column, row = (points[last] + skip * stride).round().astype(int).T + 1
            inside = (column >= 0) & (row >= 0) & (column < places.shape[1]) & (row < places.shape[0])
            hit = np.where(inside, places[np.where(inside, row, 0), np.where(inside, column, 0)], -1)
            step = active & ~moved & (hit >= 0) & (hit != last)
            last, steps, hits = np.where(step, hit, last), steps + skip * step, hits + step
            moved |= step
        active &= moved & (hits < len(points))
    return last, hits


def rulers(thin: Pixels) -> Mask:
    """Ticks (H, W) of depth and width scales: small marks of one shape, evenly spaced along a row or a column."""
    # Small marks, and which of them are of one shape.
    count, labels, stats, centres = labelled(thin > _TICK)
    width, height = stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT]
    small = np.flatnonzero((np.maximum(width, height) <= _TICK_SPAN) & (stats[:, cv2.CC_STAT_AREA] >= 3))[:_MAX_DOTS]
    chosen = np.zeros(count, bool)
    if len(small) < _FEWEST_TICKS:
        return chosen[labels]
    points = np.asarray(centres[small], np.float64)
    alike = (abs(width[small][:, None] - width[small]) <= 2) & (abs(height[small][:, None] - height[small]) <= 2)
    apart = points[:, None] - points

    # Along columns, then along rows: marks in line are followed as dots are; all marks between the ends are ticks.
    for axis in (0, 1):
        aligned = (abs(apart[:, :, axis]) < 1.5) & (apart[:, :, 1 - axis] < -_TICK_GAP[0])
        first, last = np.nonzero(alike & aligned & (apart[:, :, 1 - axis] > -_TICK_GAP[1]))
        if not len(first):
            continue
        end, hits = _followed(points, first, last, (thin.shape[0], thin.shape[1]))
        long = hits >= _fewest_ticks(len(points), len(first), thin.size)
        for start, stop in {(int(s), int(e)) for s, e in zip(first[long], end[long], strict=True)}:
            low, high = sorted((points[start, 1 - axis], points[stop, 1 - axis]))
            within = (points[:, 1 - axis] >= low - 1) & (points[:, 1 - axis] <= high + 1)
            chosen[small[within & (abs(points[:, axis] - points[start, axis]) < 2) & alike[start]]] = True
    return dilated(chosen[labels]) & (thin > 12)


def _fewest_ticks(marks: int, pairs: int, area: int) -> int:
    """Ticks a ruler must have where so many marks lie in so many pixels: more than chance would string up, as for
    dotted lines."""
    hit = min(0.9, 1 - (1 - min(1.0, 9 * marks / area)) ** 2)
    return max(_FEWEST_TICKS, 2 + int(np.ceil(np.log(_HARDLY / pairs) / np.log(hit))))


def shortest_line(dots: int, pairs: int, by_chance: float = _BY_CHANCE) -> int:
    """Dots a line must have where `dots` specks form so many `pairs` of neighbours: more than chance would string up.

    In coarse speckle specks lie so close that some stand in a row. A step from a pair finds a speck by chance in one of
    two windows of 3 x 3 pixels; a chain counts where fewer than `by_chance` such are expected (a contrario
    detection, Desolneux et al. 2000).
    """
    if not pairs:
        return _SHORTEST_LINE
    density = pairs / dots / (np.pi * _FARTHEST**2)
    hit = min(0.95, 1 - (1 - min(1.0, 9 * density)) ** 2)
    return max(_SHORTEST_LINE, 2 + int(np.ceil(np.log(by_chance / pairs) / np.log(hit))))


def dotted_lines(thin: Pixels, calipers: Points) -> tuple[Mask, Mask]:
    """Ink (H, W) of dotted lines, their last dots included; and of those that end at a caliper or are beyond doubt."""
    unsure, measured = (np.zeros(thin.shape, np.uint8) for _ in range(2))
    points = dots_of(thin)
    if not len(points):
        return unsure > 0, measured > 0
    # Each line drawn a little longer than from its first to its last dot.
    lines, surely = dotted(points, (thin.shape[0], thin.shape[1]))
    along = lines[:, 1] - lines[:, 0]
    reach = 12 * along / np.maximum(1.0, np.hypot(*along.T))[:, None]
    ends = np.stack([lines[:, 0] - reach, lines[:, 1] + reach], 1).round().astype(int).tolist()

    # Certain are lines beyond doubt and those that end at a caliper.
    apart = np.linalg.norm(lines[:, :, None] - calipers, axis=3)  # of each end from each caliper
    certain = surely | (apart < _LONGEST + _FARTHEST).any((1, 2))
    for (first, last), sure in zip(ends, certain, strict=True):
        cv2.line(measured if sure else unsure, first, last, 1, 5)
    ink = thin > 12
    return (unsure | measured > 0) & ink, (measured > 0) & ink


def straight(bright: Pixels, thin: Pixels) -> tuple[Mask, Mask]:
    """Horizontal and vertical lines of one gray level, 31 pixels and longer (H, W): boxes, cursors, M-lines. And those
    that meet at a corner: layers of tissue have none."""
    # Along rows, then columns: thin detail of one level over the whole length.
    lines = []
    strong = (thin > CONTRAST // 2).astype(np.uint8)
    for shape in ((1, 31), (31, 1)):
        kernel = np.ones(shape, np.uint8)
        even = cv2.subtract(cv2.dilate(bright, kernel), cv2.erode(bright, kernel)) < 24
        core = (cv2.erode(strong, kernel) > 0) & even
        lines.append(cv2.dilate(core.astype(np.uint8), kernel) > 0)

    # Corners: a part that holds both a horizontal and a vertical line.
    across, down = lines
    strokes = across | down
    count, labels, *_ = labelled(dilated(strokes))
    cornered = np.isin(np.arange(count), labels[across]) & np.isin(np.arange(count), labels[down])
    return strokes, strokes & cornered[labels]


def marks(thin: Pixels, calipers: Points) -> Mask:
    """Ink (H, W) of the calipers at these centres: of what is connected there only the arms."""
    mask = np.zeros(thin.shape, bool)
    strong = thin > CONTRAST // 2
    for x, y in calipers.round().astype(int):
        # What is connected to the centre, within reach.
        lines = _arms(thin, int(x), int(y))
        top, left = max(0, y - _LONGEST), max(0, x - _LONGEST)
        window = np.s_[top : y + _LONGEST + 1, left : x + _LONGEST + 1]
        _, labels = cv2.connectedComponents(strong[window].astype(np.uint8))
        if lines is not None and (middle := labels[y - top, x - left]):
            # Of that the arms, cut where the picture ends.
            rows, columns = labels.shape
            lines = lines[top - y + _LONGEST :, left - x + _LONGEST :][:rows, :columns]
            mask[window] |= (labels == middle) & lines
    return mask


def graphics(pixels: Pixels) -> tuple[Mask, Mask]:
    """Every graphic (H, W) over the tissue of an RGB crop that brightness alone tells, without its rim; and which of
    them no tissue looks like: calipers, boxes, and dotted lines that end at a caliper or are long."""
    bright = brightest_of(pixels)
    thin = ridge(bright, _STROKE if min(bright.shape) >= 240 else _STROKE - 2)
    calipers = crosses(thin)
    lines, measured = dotted_lines(thin, calipers)
    ruled, cornered = straight(bright, ridge(bright, _LINE))
    measured |= marks(thin, calipers) | cornered | rulers(thin)
    return sharp_parts(bright, thin) | ruled | lines | measured, measured


def find(crop: Crop, settings: CleanSettings) -> Finding:
    """Graphics over the tissue of a crop with their rim; colour flow is none."""
    ink, measured = graphics(crop.pixels)
    drawn, surely = strokes(crop)
    ink, measured = ink | drawn, measured | surely
    return Finding(dilated(ink & ~crop.flow) & ~crop.flow, dilated(measured) & ~crop.flow)


def strokes(crop: Crop) -> tuple[Mask, Mask]:
    """Bright thin detail (H, W) where the overlay network sees drawn graphics: small crosses, arrows and ticks, of which
    there are too many forms for a rule each. And that of which it is sure.

    What it doubts goes too where it is little: of coarse speckle it doubts many grains, of a drawn picture a few faint
    marks. Where it is sure of very many strokes it takes layers for them, and none counts.
    """
    thin = ridge(brightest_of(crop.pixels), _WIDE) > _STROKE_CONTRAST
    sure, doubted = (dilated(crop.overlay[1] > least) & thin for least in (_DRAWN, _DOUBTED))
    sure &= sure.mean() < _MANY_STROKES
    few = (doubted & ~sure).mean() < _FEW
    return doubted if few else sure, sure
