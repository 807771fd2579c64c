"""The scan region of one frame or clip: where tissue is. Everything outside is blanked, never inpainted."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from usfmae.core.flow import Mask, Pixels, Region

_DARK = 3  # gray levels around the background that count as background
_TISSUE_KINDS = ("tissue", "color")


def _filled_hull(mask: Mask) -> Mask:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    drawn = np.zeros(mask.shape, np.uint8)
    if contours:
        cv2.fillConvexPoly(drawn, cv2.convexHull(np.vstack(contours)), 1)
    return drawn > 0


def background(gray: Pixels) -> int:
    """The gray level of the screen behind the scan: the commonest dark level, 0 on most devices."""
    counts = np.bincount(gray.ravel(), minlength=256)[:64]
    level = int(counts.argmax())
    return level if counts[level] > 0.05 * gray.size else 0


def textured(gray: Pixels) -> Mask:
    """Dense, uneven content: speckle is both; text is not dense, bars and banners are not uneven."""
    level = background(gray)
    content = cv2.absdiff(gray, np.full_like(gray, level)) > _DARK
    spread = cv2.morphologyEx(gray, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    flat = (spread <= 1) & content
    size = 15 if min(gray.shape) >= 240 else 7
    return cv2.blur((content & ~flat).astype(np.float32), (size, size)) > 0.6


def measured(gray: Pixels) -> Mask:
    """The region one gray frame (H, W) shows: its large textured parts, each filled to its convex hull."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(textured(gray).astype(np.uint8), connectivity=4)
    region = np.zeros(gray.shape, bool)
    if count < 2:
        return region
    areas = stats[1:, cv2.CC_STAT_AREA]
    for index in np.flatnonzero(areas >= 0.2 * areas.max()) + 1:
        region |= _filled_hull(labels == index)
    return region


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
