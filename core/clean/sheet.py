"""Windows of a picture packed side by side on one small sheet, so that the detector looks only where there is cause."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from usfmae.core.clean.engines import ANCHORS, Probability, text_probability
from usfmae.core.clean.morphology import components
from usfmae.core.flow import Mask, Pixels

Window = tuple[slice, slice]  # rows, columns

_ABOVE, _BESIDE = 10, 24  # pixels of surroundings that the detector sees; a line of text goes on sideways
_GAP = 8  # black between two windows
_STEP = 64  # sheets come in few sizes: a new input shape costs the detector about one pass
_NARROWEST = 256  # what the detector takes at least
_WHOLE = 0.9  # share of the picture from which a sheet saves nothing


def windows_around(mask: Mask) -> list[Window]:
    """Boxes around the parts of a mask (H, W) with their surroundings; near parts share one."""
    near = cv2.dilate(mask.astype(np.uint8), np.ones((2 * _ABOVE + 1, 2 * _BESIDE + 1), np.uint8)) > 0
    return [window for window, _ in components(near)]


def _size(window: Window) -> tuple[int, int]:
    return window[0].stop - window[0].start, window[1].stop - window[1].start


def packed(windows: Sequence[Window]) -> tuple[list[tuple[Window, Window]], tuple[int, int]]:
    """Each window with its place on the sheet, and the sheet's size: of all widths the one with the smallest sheet."""
    area = sum((h + _GAP) * (w + _GAP) for h, w in map(_size, windows))
    widest = max(w for _, w in map(_size, windows))
    narrowest = max(_NARROWEST, -(-widest // _STEP) * _STEP)
    widths = range(narrowest, max(narrowest, round(2 * area**0.5)) + 1, _STEP)
    return min((_shelves(windows, width) for width in widths), key=lambda sheet: (sheet[1][0] + ANCHORS) * sheet[1][1])


def _shelves(windows: Sequence[Window], width: int) -> tuple[list[tuple[Window, Window]], tuple[int, int]]:
    """Shelf below shelf, the tallest window first."""
    places = []
    x = y = shelf = 0
    for window in sorted(windows, key=lambda window: -_size(window)[0]):
        h, w = _size(window)
        if x + w > width:
            x, y, shelf = 0, y + shelf + _GAP, 0
        places.append((window, np.s_[y : y + h, x : x + w]))
        x, shelf = x + w + _GAP, max(shelf, h)
    height = -(-(y + shelf + ANCHORS) // _STEP) * _STEP - ANCHORS
    return places, (height, width)


def probability_within(
    pixels: Pixels, windows: Sequence[Window], view: Callable[[Pixels], Pixels], precision: str
) -> Probability:
    """Text probability (H, W) of an RGB picture within some windows, each seen under a view; 0 elsewhere."""
    found = np.zeros(pixels.shape[:2], np.float32)
    if not windows:
        return found
    places, (height, width) = packed(windows)
    if (height + ANCHORS) * width > _WHOLE * (pixels.shape[0] + ANCHORS) * pixels.shape[1]:
        return text_probability(view(pixels), precision)
    sheet = np.zeros((height, width, 3), np.uint8)
    for window, place in places:
        sheet[place] = view(pixels[window])
    read = text_probability(sheet, precision)
    for window, place in places:
        found[window] = np.maximum(found[window], read[place])
    return found
