"""Navier-Stokes inpainting (Bertalmio, Bertozzi and Sapiro, CVPR 2001)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import cv2
import numpy as np

from usfmae.core.clean.morphology import bounds
from usfmae.core.flow import Mask, Pixels

_RIM = 16  # pixels around the holes that are handed to the solver


def _solved(pixels: Pixels, holes: Pixels, radius: float) -> Pixels:
    return cv2.inpaint(np.ascontiguousarray(pixels), holes, radius, cv2.INPAINT_NS).astype(np.uint8, copy=False)


def inpainted(pixels: Pixels, mask: Mask, radius: float) -> Pixels:
    """Fill `mask` (H, W) of RGB `pixels` (H, W, 3) from its surroundings; pixels outside the mask are untouched."""
    return inpainted_together([pixels], mask, radius)[0]


def inpainted_together(frames: Sequence[Pixels], mask: Mask, radius: float) -> list[Pixels]:
    """Fill the same `mask` in every frame. Gray frames go three at a time as the channels of one picture: the solver
    treats channels apart, but walks the mask once."""
    results = [frame.copy() for frame in frames]
    if not mask.any():
        return results
    rows, columns = bounds(mask)
    window = np.s_[max(0, rows.start - _RIM) : rows.stop + _RIM, max(0, columns.start - _RIM) : columns.stop + _RIM]
    holes = mask[window].astype(np.uint8)
    around = cast(Pixels, cv2.bitwise_not(holes * 255))
    gray: dict[int, Pixels] = {}
    for i, frame in enumerate(frames):
        red, green, blue = cv2.split(frame[window])
        # What lies under the mask is never read, so coloured ink does not make a gray frame a coloured one.
        apart = cv2.max(cv2.absdiff(red, green), cv2.absdiff(green, blue))
        if cv2.countNonZero(cv2.bitwise_and(apart, around)):
            results[i][window] = _solved(frame[window], holes, radius)
        else:
            gray[i] = cast(Pixels, red)
    order = list(gray)
    for three in (order[start : start + 3] for start in range(0, len(order), 3)):
        channels = [gray[i] for i in three]
        together = channels[0] if len(channels) == 1 else cast(Pixels, cv2.merge((channels * 2)[:3]))
        for i, channel in zip(three, cv2.split(_solved(together, holes, radius)), strict=False):
            results[i][window] = cv2.merge([channel] * 3)
    return results
