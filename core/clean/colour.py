"""Colour ink apart from colour flow: ink is thin or of one flat colour, flow is thick and its colour varies.

A picture that its device tints as a whole (sepia, blue) has no colour of its own: the tint is taken out before any step
looks at it, and stays in what is kept.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from usfmae.core.clean.finding import Crop, Finding
from usfmae.core.clean.morphology import (
    brightest_of,
    channel_difference,
    components,
    dilated,
    gray_of,
    labelled,
    largest_of,
)
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import Mask, Pixels

_CHROMA = 40  # largest minus smallest channel
FAINT_CHROMA = 18  # rims of ink, where it is mixed with the tissue below
_STROKE = 3.2  # half width of the thickest stroke that is drawn, in pixels
_LIKE = 30.0  # distance in RGB within which a pixel has the colour of its part
_ONE_COLOUR = 0.7  # share of such pixels from which a part is of one colour
_BESIDE = 9  # pixels around flow in which crumbs of colour are flow too
_SMALLEST_FLOW = 40  # pixels; smaller parts are flow only beside larger ones
_BAR_FILL, _BAR_WIDTH = 0.93, 28  # share of its bounding box that a colour bar fills; pixels of its shorter side
_INK_CHROMA = 26  # of hues that no flow has
_LETTERS, _LETTER_HEIGHT = 4, 34  # parts that stand in a row as letters do; pixels across the row
_LIT, _TINTED, _OFF = 24, 0.6, 0.2  # gray level; share of lit pixels with a colour; share that a tint does not explain
_LEVELS = 64  # of brightness, for each of which a tint is one colour


def no_flow_hue(pixels: Pixels) -> Mask:
    """Where the colour (H, W) is yellow, green or magenta: devices draw in these; flow is red to orange, or blue to cyan."""
    red, green, blue = (plane.astype(np.int16) for plane in cv2.split(pixels))
    greenish = (green - red > -12) & (green - blue > 10)  # yellow to green
    magenta = (red - green > 25) & (blue - green > 25) & (np.abs(red - blue) < 60)
    return np.asarray(greenish | magenta, bool)


def _one_colour(pixels: Pixels, labels: NDArray[Any], inner: Mask, count: int) -> NDArray[np.bool_]:
    """Which parts (count,) are of one colour: most of their inner pixels are near the mean of these."""
    # The mean colour of each part, then the share of its pixels near that.
    ys, xs = np.nonzero((labels > 0) & inner)
    which, colours = labels[ys, xs], pixels[ys, xs].astype(np.float64)
    total = np.maximum(1, np.bincount(which, minlength=count))
    mean = np.stack([np.bincount(which, colours[:, c], count) / total for c in range(3)], 1)
    like = np.sqrt(((colours - mean[which]) ** 2).sum(1)) < _LIKE
    return np.bincount(which, like, count) > _ONE_COLOUR * total


def _in_a_row(labels: NDArray[Any], depth: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """Which parts (count,) stand in a row of several thin ones, along rows or columns, as letters do."""
    in_row = np.zeros(count, bool)
    for reach in ((3, 11), (11, 3)):
        near = cv2.dilate((labels > 0).astype(np.uint8), np.ones(reach, np.uint8)) > 0
        for window, row in components(near, smallest=_SMALLEST_FLOW):
            parts = np.unique(labels[window][row & (labels[window] > 0)])
            height, length = sorted(row.shape)
            if len(parts) >= _LETTERS and height <= _LETTER_HEIGHT and length > 2 * height and depth[parts].max() < 5:
                in_row[parts] = True
    return in_row


def split(pixels: Pixels) -> tuple[Mask, Mask]:
    """Colour ink and colour flow of an RGB crop, each (H, W)."""
    # What is coloured at all.
    difference = channel_difference(pixels)
    drawn_hue = no_flow_hue(pixels)
    colour = (difference > _CHROMA) | (drawn_hue & (difference > _INK_CHROMA))
    nothing = np.zeros(colour.shape, bool)
    if not colour.any():
        return nothing, nothing

    # JPEG bleeds colour into a rim; only what is near the strongest colour around tells width and hue.
    strong = colour & (difference > 0.55 * cv2.dilate(difference, np.ones((7, 7), np.uint8)))
    count, labels, stats, _ = labelled(strong)

    # Of each part: area, half its width, whether it is of one colour, a bar, a disc, of a hue that devices draw in.
    area = stats[:, cv2.CC_STAT_AREA]
    distance = cv2.distanceTransform(strong.astype(np.uint8), cv2.DIST_L2, 3)
    depth = largest_of(labels, distance, count)
    even = _one_colour(pixels, labels, distance >= 0.6 * depth[labels], count)
    fill = area / (stats[:, cv2.CC_STAT_WIDTH] * stats[:, cv2.CC_STAT_HEIGHT])
    narrow = np.minimum(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT]) <= _BAR_WIDTH
    bar = (fill > _BAR_FILL) & (area > 200) & narrow
    compact = np.pi * depth**2 / np.maximum(1, area)  # 1 for a disc, near 0 for a line
    blob = ~even & (compact > 0.2) & (area >= 1.5 * _SMALLEST_FLOW)
    drawn = np.bincount(labels[drawn_hue], minlength=count) / np.maximum(1, area) > 0.6
    blob &= ~drawn

    # Flow for sure: thick parts, but no bars and no letters.
    seed = (
        (depth > _STROKE) & ~(even & (depth < 4)) & (area >= _SMALLEST_FLOW) & ~(drawn & (depth < 2 * _STROKE)) | blob
    ) & ~bar
    seed &= ~_in_a_row(labels, depth, count)
    seed[0] = False
    flow = seed[labels]

    # Thin twigs and crumbs near a thick part are flow too, but no line that passes by.
    if flow.any():
        twig = ~even | (area < _SMALLEST_FLOW) | (compact > 0.1)
        twig[0] = True
        reach = dilated(flow, _BESIDE)
        near = np.zeros(count, bool)
        near[np.unique(labels[reach])] = True
        flow |= (near & twig)[labels] & (strong | reach) & colour

    # All other colour is ink, with the faint rim that JPEG gave it.
    ink = colour & ~flow
    ink |= dilated(ink, 2) & (difference > FAINT_CHROMA) & ~flow
    return ink, flow


def untinted(pixels: Pixels, inside: Mask) -> tuple[Pixels, bool]:
    """The picture with its device's tint taken out, and whether most of it has a colour that no tint explains.

    A tint is one colour for each level of brightness: the median of what is lit and of that level.
    """
    # Most pictures have no tint: little of what is lit has a colour.
    lit = inside & (brightest_of(pixels) > _LIT)
    if not lit.any() or (channel_difference(pixels)[lit] > FAINT_CHROMA).mean() < _TINTED:
        return pixels, False

    # The tint of each level of brightness, taken out of the whole picture.
    luma = gray_of(pixels)
    level = luma[lit].astype(int) * _LEVELS // 256
    shift = np.zeros((_LEVELS, 3))
    for each in np.unique(level):
        shift[each] = np.median(pixels[lit][level == each].astype(np.float32) - luma[lit][level == each][:, None], 0)
    neutral = np.clip(pixels - shift[luma.astype(int) * _LEVELS // 256], 0, 255).round().astype(np.uint8)
    neutral[~inside] = 0
    return neutral, bool((channel_difference(neutral)[lit] > FAINT_CHROMA).mean() > _OFF)


def find(crop: Crop, settings: CleanSettings) -> Finding:
    """Colour ink of a crop with its rim; all of it is certain."""
    ink, _ = split(crop.pixels)
    ink = dilated(ink) & ~crop.flow
    return Finding(ink, ink)
