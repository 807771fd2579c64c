"""Navier-Stokes inpainting (Bertalmio, Bertozzi and Sapiro, CVPR 2001)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from usfmae.core.clean.morphology import bounds, masked
from usfmae.core.flow import Mask, Pixels

_RIM = 16  # pixels around the holes that are handed to the solver


def is_gray(pixels: Pixels) -> bool:
    """True where R = G = B everywhere."""
    red, green, blue = cv2.split(pixels)
    return not cv2.absdiff(red, green).any() and not cv2.absdiff(green, blue).any()


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
    # What lies under the mask is never read, so coloured ink does not make a gray frame a coloured one.
    gray = [i for i, frame in enumerate(frames) if is_gray(masked(np.ascontiguousarray(frame[window]), holes == 0))]
    for i in sorted(set(range(len(frames))) - set(gray)):
        results[i][window] = _solved(frames[i][window], holes, radius)
    for start in range(0, len(gray), 3):
        three = gray[start : start + 3]
        merged = np.stack([frames[i][window][:, :, 0] for i in three], 2) if len(three) > 1 else None
        if merged is None:
            results[three[0]][window] = _solved(frames[three[0]][window][:, :, 0], holes, radius)[:, :, None]
            continue
        if merged.shape[2] == 2:
            merged = np.concatenate([merged, merged[:, :, :1]], 2)
        solved = _solved(merged, holes, radius)
        for channel, i in enumerate(three):
            results[i][window] = solved[:, :, channel, None]
    return results
