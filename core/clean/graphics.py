"""Gray overlay graphics over tissue: calipers, the dotted lines between them, long sharp strokes."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from usfmae.core.flow import Mask, Pixels


def ridge(gray: Pixels) -> Pixels:
    """Thin bright detail (H, W): the white top-hat of radius 2."""
    return cv2.morphologyEx(gray, cv2.MORPH_TOPHAT, np.ones((5, 5), np.uint8)).astype(np.uint8)


def _cross(arm: int, diagonal: bool) -> NDArray[np.float32]:
    size = 2 * arm + 5
    kernel = np.zeros((size, size), np.float32)
    c = size // 2
    for d in range(-arm, arm + 1):
        for y, x in ((c + d, c + d), (c + d, c - d)) if diagonal else ((c + d, c), (c, c + d)):
            kernel[y, x] = 1
    kernel[kernel == 0] = -kernel.sum() / (kernel.size - kernel.sum())
    return kernel / np.abs(kernel).sum()


def calipers(gray: Pixels) -> Mask:
    """Crosses (+ and x) of arm 4..9 pixels, by template correlation on the thin detail."""
    thin = cv2.GaussianBlur(ridge(gray), (3, 3), 0).astype(np.float32)
    found = np.zeros(gray.shape, bool)
    for arm in (4, 6, 9):
        for diagonal in (False, True):
            kernel = _cross(arm, diagonal)
            match = cv2.matchTemplate(
                cv2.copyMakeBorder(thin, *(kernel.shape[0] // 2,) * 4, cv2.BORDER_REFLECT), kernel, cv2.TM_CCOEFF_NORMED
            )
            for y, x in zip(*np.nonzero(match > 0.75), strict=True):
                found[max(0, y - arm - 1) : y + arm + 2, max(0, x - arm - 1) : x + arm + 2] = True
    return found & (thin > 20)


def graphics(gray: Pixels) -> Mask:
    """Every gray graphic (H, W) over tissue."""
    return calipers(gray)
