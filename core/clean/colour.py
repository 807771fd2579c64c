"""Colour ink apart from colour flow: ink is thin or of one flat colour, flow is a thick blob of several hues."""

from __future__ import annotations

import cv2
import numpy as np
from usfmae.core.flow import Mask, Pixels

_CHROMA = 40  # largest minus smallest channel


def saturated(pixels: Pixels) -> Mask:
    """Pixels (H, W) whose channels differ clearly."""
    return (pixels.max(2).astype(np.int16) - pixels.min(2)) > _CHROMA


def flow(pixels: Pixels) -> Mask:
    """Colour flow (H, W): saturated components with a thick core."""
    colour = saturated(pixels).astype(np.uint8)
    core = cv2.morphologyEx(colour, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7)))
    count, labels = cv2.connectedComponents(colour)
    thick = np.zeros(count, bool)
    thick[np.unique(labels[core > 0])] = True
    thick[0] = False
    return thick[labels]


def ink(pixels: Pixels) -> Mask:
    """Colour overlay (H, W): saturated and no flow."""
    colour = saturated(pixels)
    return colour & ~flow(pixels) if colour.any() else colour
