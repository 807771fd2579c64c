"""The scan region of one frame or clip: where tissue is. Everything outside is blanked, never inpainted."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from usfmae.core.clean.morphology import bounds, components, dilated, labelled, opened
from usfmae.core.types import Mask, Pixels, Region

DARK = 3  # gray levels above the background that still count as background
_FAINT = 24  # noise of far fields and codecs stays below this
_DIM = 60  # overlays are brighter than this, far fields darker
_BLOCK = 300  # pixels; the blocks of codecs are smaller
_ONE_LEVEL = 2.0  # variance of levels
_RECTANGLE = 0.9  # share of its box; a sector fills up to 0.8
_EMPTY_LEVEL, _EMPTY_SIZE = 12, 7  # gray levels and pixels of what is blank: of one dark level all around
_TISSUE_KINDS = ("tissue", "color")


def _hull(mask: Mask) -> Mask:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    drawn = np.zeros(mask.shape, np.uint8)
    if contours:
        cv2.fillConvexPoly(drawn, cv2.convexHull(np.vstack(contours)), 1)
    return drawn > 0


def background(gray: Pixels) -> int:
    """The gray level of the screen behind the scan: the commonest dark level, 0 on most devices."""
    counts = cv2.calcHist([gray], [0], None, [64], [0, 64]).ravel()
    level = int(counts.argmax())
    return level if counts[level] > 0.05 * gray.size else 0


def _dense(mask: Mask, size: int, share: float) -> Mask:
    """Where more than a share of the square of `size` pixels around is in the mask (H, W)."""
    count = cv2.boxFilter(mask.view(np.uint8), cv2.CV_16U, (size, size), normalize=False)
    return count > share * size**2


def ground(even: Mask, gray: Pixels) -> Mask:
    """Of what is even the ground of bars and banners (H, W): large parts of one level. Tissue that a codec has smeared
    is even too, but in small blocks or with a drift of levels."""
    count, labels, stats, _ = labelled(even)
    which, levels = labels[even], gray[even].astype(np.float64)
    area = np.maximum(1, stats[:, cv2.CC_STAT_AREA])
    mean = np.bincount(which, levels, count) / area
    spread = np.bincount(which, levels**2, count) / area - mean**2
    flat = (area >= _BLOCK) & (spread <= _ONE_LEVEL)
    flat[0] = False
    return flat[labels]


def textured(gray: Pixels) -> tuple[Mask, Mask]:
    """Tissue for sure, and dim far field perhaps; both (H, W).

    Speckle is dense and uneven; text is not dense, bars and banners are not uneven. A far field is sparse, but unlike
    the text near it has nothing bright about it.
    """
    # What is brighter than the screen, without even bars and banners.
    size = max(5, min(gray.shape) // 40 | 1)
    content = cv2.absdiff(gray, np.full_like(gray, background(gray))) > DARK
    square = np.ones((3, 3), np.uint8)
    even = (cv2.morphologyEx(gray, cv2.MORPH_GRADIENT, square) <= 1) & (gray > 24)
    if even.any():
        even = ground(even, gray)

    # Dense content is tissue (found at half size, which is as good and quicker); sparse content that is dim may be.
    dense = _dense(content & ~even, size, 0.6)[::2, ::2]
    sure = cv2.resize(opened(dense, size // 3).view(np.uint8), gray.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    near_bright = cv2.dilate(gray, np.ones((9, 9), np.uint8)) > _DIM
    return sure, _dense(content & ~even & ~near_bright, size, 0.25)


def measured(gray: Pixels) -> tuple[Mask, float]:
    """The region one gray frame (H, W) shows: its large textured parts with their far fields, filled to their hulls.
    And what was cut off though it looks like a far field, as a share of the region's lit pixels."""
    # The large parts of sure tissue.
    sure, dim = textured(gray)
    region = np.zeros(gray.shape, bool)
    parts = [(window, part, int(part.sum())) for window, part in components(sure)]
    if not parts:
        return region, 0.0
    largest = max(area for *_, area in parts)
    chosen = np.zeros(gray.shape, bool)
    for window, part, area in parts:
        if area >= 0.03 * largest:
            chosen[window] |= part

    # With the dim parts that touch them, or are large themselves.
    for window, part in components(chosen | dim, smallest=min(0.03 * largest, 0.003 * gray.size)):
        if (part & chosen[window]).any() or part.sum() > (
            0.003 if gray[window][part].max() < _FAINT else 0.01
        ) * gray.size:
            region[window] |= part

    # A scan is convex: the hull, and what of the dim parts it leaves out.
    region = fitted(dilated(_hull(region), max(2, min(gray.shape) // 100)))
    lit = gray > background(gray) + DARK
    return region, int((dim & lit & ~region).sum()) / max(1, int((lit & region).sum()))


def blank(pixels: Pixels) -> Mask:
    """Where an RGB crop is of one dark level all around, in large parts (H, W): the black boxes that data sets lay over
    names, the screen within the hull. Nothing is drawn there, and nothing is filled with invented tissue."""
    # Dark and of one level over a square around, in both directions of the difference.
    bright = pixels.max(2)
    square = np.ones((_EMPTY_SIZE, _EMPTY_SIZE), np.uint8)
    highest = cv2.dilate(bright, square)
    even = (highest <= _EMPTY_LEVEL) & (cv2.subtract(highest, cv2.erode(bright, square)) <= 1)
    _, labels, stats, _ = labelled(even)
    large = stats[:, cv2.CC_STAT_AREA] >= _BLOCK
    large[0] = False
    return dilated(large[labels], _EMPTY_SIZE // 2 - 1)


def fitted(hull: Mask) -> Mask:
    """A hull that nearly fills its box is a rectangle whose dark corners show nothing: the scan of a linear probe."""
    if hull.any() and hull[bounds(hull)].mean() > _RECTANGLE:
        hull[bounds(hull)] = True
    return hull


def tagged(regions: Sequence[Region], shape: tuple[int, int]) -> Mask | None:
    """The tissue rectangles of the header, or None where it states none or one that exceeds the stored pixels.

    Files whose regions (DICOM PS3.3 C.8.5.5) still describe the frame before it was cropped are common.
    """
    height, width = shape
    if not regions or any(not (0 <= r.x0 < r.x1 <= width and 0 <= r.y0 < r.y1 <= height) for r in regions):
        return None
    mask = np.zeros(shape, bool)
    for r in regions:
        if r.kind in _TISSUE_KINDS:
            mask[r.y0 : r.y1, r.x0 : r.x1] = True
    return mask


def disagree(measured_region: Mask, tags: Mask) -> bool:
    """True where header and picture tell of different places: over a fifth of the measured region is outside."""
    area = int(measured_region.sum())
    return area > 0 and int((measured_region & tags).sum()) < 0.8 * area
