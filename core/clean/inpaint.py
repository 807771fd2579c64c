"""Navier-Stokes inpainting (Bertalmio, Bertozzi and Sapiro, CVPR 2001)."""

from __future__ import annotations

import cv2
import numpy as np

from usfmae.core.flow import Mask, Pixels


def is_gray(pixels: Pixels) -> bool:
    """True where R = G = B everywhere."""
    red, green, blue = pixels[:, :, 0], pixels[:, :, 1], pixels[:, :, 2]
    return bool(np.array_equal(red, green) and np.array_equal(green, blue))


def inpainted(pixels: Pixels, mask: Mask, radius: float) -> Pixels:
    """Fill `mask` (H, W) of RGB `pixels` (H, W, 3) from its surroundings; pixels outside the mask are untouched."""
    if not mask.any():
        return pixels.copy()
    holes = mask.astype(np.uint8)
    if is_gray(pixels):  # a third of the work
        filled = cv2.inpaint(np.ascontiguousarray(pixels[:, :, 0]), holes, radius, cv2.INPAINT_NS)
        return np.repeat(filled[:, :, None], 3, axis=2)
    return cv2.inpaint(np.ascontiguousarray(pixels), holes, radius, cv2.INPAINT_NS).astype(np.uint8)
