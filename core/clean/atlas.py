"""Windows of a picture packed side by side on one small sheet, so that the detector looks only where there is cause."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from usfmae.core.clean.morphology import components
from usfmae.core.clean.ocr import ANCHORS, Probability, text_probability
from usfmae.core.types import Mask, Pixels

Window = tuple[slice, slice]  # rows, columns
Size = tuple[int, int]  # height, width

_ABOVE, _BESIDE = 10, 24  # pixels of surroundings that the detector sees; a line of text goes on sideways
_REDUCED = 0.75  # of the picture's size: on windows the detector finds as much as at full size, for two thirds the time
_GAP = 8  # black between two windows
_STEP = 64  # sheets come in few sizes: a new input shape costs the detector about one pass
_NARROWEST = 256  # what the detector takes at least
_WHOLE = 0.9  # share of the picture from which a sheet saves nothing


def windows_around(mask: Mask) -> list[Window]:
    """Boxes around the parts of a mask (H, W) with their surroundings; near parts share one."""
    near = cv2.dilate(mask.astype(np.uint8), np.ones((2 * _ABOVE + 1, 2 * _BESIDE + 1), np.uint8)) > 0
    return [window for window, _ in components(near)]


def packed(sizes: Sequence[Size]) -> tuple[list[Window], Size]:
    """The place of each picture on a sheet, and the sheet's size: of all widths the one with the smallest sheet."""
    area = sum((h + _GAP) * (w + _GAP) for h, w in sizes)
    narrowest = max(_NARROWEST, -(-max(w for _, w in sizes) // _STEP) * _STEP)
    widths = range(narrowest, max(narrowest, round(2 * area**0.5)) + 1, _STEP)
    return min((_shelves(sizes, width) for width in widths), key=lambda sheet: (sheet[1][0] + ANCHORS) * sheet[1][1])


def _shelves(sizes: Sequence[Size], width: int) -> tuple[list[Window], Size]:
    """Shelf below shelf, the tallest picture first."""
    places: dict[int, Window] = {}
    x = y = shelf = 0
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i][0]):
        h, w = sizes[index]
        if x + w > width:
            x, y, shelf = 0, y + shelf + _GAP, 0
        places[index] = np.s_[y : y + h, x : x + w]
        x, shelf = x + w + _GAP, max(shelf, h)
    height = -(-(y + shelf + ANCHORS) // _STEP) * _STEP - ANCHORS
    return [places[i] for i in range(len(sizes))], (height, width)


def _resized(picture: NDArray[Any], size: Size, way: int) -> NDArray[Any]:
    return cv2.resize(picture, size[::-1], interpolation=way)


def probability_within(
    pixels: Pixels, windows: Sequence[Window], view: Callable[[Pixels], Pixels], precision: str
) -> Probability:
    """Text probability (H, W) of an RGB picture within some windows, each seen under a view; 0 elsewhere."""
    found = np.zeros(pixels.shape[:2], np.float32)
    if not windows:
        return found
    full = [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in windows]
    small = [(max(1, round(_REDUCED * h)), max(1, round(_REDUCED * w))) for h, w in full]
    places, (height, width) = packed(small)
    if (height + ANCHORS) * width > _WHOLE * _REDUCED**2 * (pixels.shape[0] + ANCHORS) * pixels.shape[1]:
        full, windows = [(pixels.shape[0], pixels.shape[1])], [np.s_[: pixels.shape[0], : pixels.shape[1]]]
        height, width = (round(_REDUCED * side) for side in full[0])
        small, places = [(height, width)], [np.s_[:height, :width]]
    sheet = np.zeros((height, width, 3), np.uint8)
    for window, place, size in zip(windows, places, small, strict=True):
        sheet[place] = _resized(view(pixels[window]), size, cv2.INTER_AREA)
    read = text_probability(sheet, precision)
    for window, place, size in zip(windows, places, full, strict=True):
        found[window] = np.maximum(found[window], _resized(read[place], size, cv2.INTER_LINEAR))
    return found
