"""Gray overlay graphics over tissue: calipers, dotted lines, arrows, lines and boxes.

Ink differs from tissue in three ways that no beam can imitate: it is flat (one gray level along the stroke), sharp
(full contrast within a pixel or two) and thin.
"""

from __future__ import annotations

from itertools import combinations

import cv2
import numpy as np
from numpy.typing import NDArray

from usfmae.core.clean.morphology import dilated
from usfmae.core.flow import Mask, Pixels

_STROKE = 7  # top-hat window: strokes narrower than this stand out
_CONTRAST = 60  # gray levels of ink above what surrounds it
_MAX_CALIPERS = 12

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


def crosses(thin: Pixels) -> Points:
    """Centres (N, 2) of + and x with arms of at least three pixels."""
    found = np.zeros(thin.shape, bool)
    for one, other in (((1, 0), (0, 1)), ((1, 1), (1, -1))):
        both = cv2.min(_along(thin, *one, 7), _along(thin, *other, 7))
        found |= both > _CONTRAST * 2 // 3
    _, _, stats, centres = cv2.connectedComponentsWithStats(found.astype(np.uint8))
    small = (stats[1:, cv2.CC_STAT_WIDTH] <= 9) & (stats[1:, cv2.CC_STAT_HEIGHT] <= 9)
    return np.asarray(centres[1:][small][:_MAX_CALIPERS], np.float64)


def sharp_parts(gray: Pixels, thin: Pixels) -> tuple[Mask, Points, Mask]:
    """Flat, sharp, bright parts (H, W); the centres (N, 2) of parts as small as a dot, and those dots (H, W)."""
    count, labels, stats, centres = cv2.connectedComponentsWithStats((thin > _CONTRAST).astype(np.uint8))
    ys, xs = np.nonzero(labels)
    which, level = labels[ys, xs], gray[ys, xs].astype(np.float64)
    top = np.zeros(count)
    np.maximum.at(top, which, level)
    area = np.maximum(1, stats[:, cv2.CC_STAT_AREA])
    flat = np.bincount(which, level > 0.85 * top[which], count) / area
    # Ring two pixels outside: where ink is drawn it has fallen to tissue, where tissue shines it still glows.
    ring = dilated(labels > 0, 2) & ~dilated(labels > 0, 1)
    around = cv2.blur(gray * ring.astype(np.float32), (9, 9)) / np.maximum(
        1e-3, cv2.blur(ring.astype(np.float32), (9, 9))
    )
    outside = np.bincount(which, around[ys, xs], count) / area
    crisp = (flat > 0.55) & (top - outside > 90) & (top > 140)
    span = np.maximum(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT])
    dot = (span <= 5) & (area <= 16) & (top - outside > 50)
    drawn = crisp & (area >= 14) & (span >= 7)
    drawn[0] = dot[0] = False
    return drawn[labels], np.asarray(centres[dot], np.float64), dot[labels]


def dotted(points: Points, ends: Points, play: float = 1.8) -> NDArray[np.bool_]:
    """Which of the dots (N, 2) lie evenly spaced on a straight line between two of `ends` (M, 2)."""
    chosen = np.zeros(len(points), bool)
    if len(points) < 4:
        return chosen
    for a, b in combinations(ends, 2):
        length = float(np.hypot(*(b - a)))
        if length < 20:
            continue
        along = (b - a) / length
        t = (points - a) @ along
        off = np.abs((points - a) @ np.array([-along[1], along[0]]))
        near = (off < play) & (t > 0) & (t < length)
        gaps = np.diff(np.sort(t[near]))
        if len(gaps) >= 4 and np.median(gaps) < 14 and near.sum() * np.median(gaps) > 0.5 * length:
            chosen |= near
    return chosen


def straight(gray: Pixels, thin: Pixels) -> Mask:
    """Horizontal and vertical lines of one gray level, 31 pixels and longer (H, W): boxes, cursors, M-lines."""
    found = np.zeros(gray.shape, bool)
    strong = (thin > _CONTRAST // 2).astype(np.uint8)
    for shape in ((1, 31), (31, 1)):
        kernel = np.ones(shape, np.uint8)
        even = cv2.subtract(cv2.dilate(gray, kernel), cv2.erode(gray, kernel)) < 24
        core = (cv2.erode(strong, kernel) > 0) & even
        found |= cv2.dilate(core.astype(np.uint8), kernel) > 0
    return found


def graphics(gray: Pixels) -> Mask:
    """Every gray graphic (H, W) over tissue, without its rim."""
    thin = ridge(gray)
    found, dots, dot_mask = sharp_parts(gray, thin)
    centres = crosses(thin)
    arms = thin > _CONTRAST // 2
    for x, y in centres.round().astype(int):
        window = np.s_[max(0, y - 11) : y + 12, max(0, x - 11) : x + 12]
        _, labels = cv2.connectedComponents(arms[window].astype(np.uint8))
        middle = labels[min(y, 11), min(x, 11)]
        if middle:
            found[window] |= labels == middle
    on_line = dotted(dots, centres)
    if on_line.any():
        seeds = np.zeros(gray.shape, np.uint8)
        for x, y in dots[on_line].round().astype(int):
            cv2.circle(seeds, (int(x), int(y)), 3, 1, -1)
        found |= (seeds > 0) & (dot_mask | (thin > _CONTRAST // 3))
    return found | straight(gray, thin)
