"""Colour ink apart from colour flow: ink is thin and of one hue, flow is thick or of many."""

from __future__ import annotations

import cv2
import numpy as np

from usfmae.core.clean.morphology import closed, dilated
from usfmae.core.flow import Mask, Pixels

_CHROMA = 40  # largest minus smallest channel
_FAINT_CHROMA = 18  # rims of ink, where it is mixed with the tissue below
_STROKE = 2.9  # half width of the thickest stroke that is drawn, in pixels
_ONE_HUE = 0.97  # length of the mean hue vector above which all pixels share a hue
_BAR_FILL = 0.93  # share of its bounding box that a colour bar fills


def chroma(pixels: Pixels) -> Pixels:
    """How far the channels differ, (H, W) uint8."""
    red, green, blue = cv2.split(pixels)
    return cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)).astype(np.uint8)


def split(pixels: Pixels) -> tuple[Mask, Mask]:
    """Colour ink and colour flow of an RGB crop, each (H, W).

    A saturated part is flow where it is thicker than any stroke, or where its hue varies as velocity does, or where it
    lies beside a thick part. It is ink where it is thin and of one hue, or a filled rectangle (the colour bar).
    """
    difference = chroma(pixels)
    colour = difference > _CHROMA
    nothing = np.zeros(colour.shape, bool)
    if not colour.any():
        return nothing, nothing
    joined = closed(colour, 1)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(joined.astype(np.uint8))
    flat = labels.ravel()
    depth = cv2.distanceTransform(joined.astype(np.uint8), cv2.DIST_L2, 3).ravel()
    thickness = np.zeros(count)
    np.maximum.at(thickness, flat, depth)
    thick = thickness > _STROKE
    bar = thick & (stats[:, cv2.CC_STAT_AREA] > _BAR_FILL * stats[:, cv2.CC_STAT_WIDTH] * stats[:, cv2.CC_STAT_HEIGHT])
    bar &= stats[:, cv2.CC_STAT_AREA] > 200
    hue = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[:, :, 0].ravel() * (np.pi / 90)
    weight = colour.ravel().astype(float)
    size = np.maximum(1, np.bincount(flat, weight, count))
    unity = (
        np.hypot(np.bincount(flat, weight * np.cos(hue), count), np.bincount(flat, weight * np.sin(hue), count)) / size
    )
    thick[0] = bar[0] = False
    core = (thick & ~bar)[labels]
    beside = np.zeros(count, bool)
    if core.any():
        beside[np.unique(labels[dilated(core, 5)])] = True
    is_flow = ((thick | beside | (unity < _ONE_HUE)) & ~bar)[labels] & joined
    ink = colour & ~is_flow
    ink |= dilated(ink, 2) & (difference > _FAINT_CHROMA) & ~is_flow
    return ink, is_flow & colour
