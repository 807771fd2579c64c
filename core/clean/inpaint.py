"""Navier-Stokes inpainting (Bertalmio, Bertozzi and Sapiro, CVPR 2001)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import cv2
import numpy as np

from usfmae.core.clean.morphology import bounds, dilated
from usfmae.core.types import Mask, Pixels

Planes = list[Pixels]  # the one channel (H, W) of a gray picture, or the three of a coloured one

_RIM = 16  # pixels around the holes that are handed to the solver
_STRAY = 0.03  # share of pixels around the holes that may be coloured all the same


def planes_of(pixels: Pixels, holes: Mask) -> Planes:
    """The channels of an RGB picture (H, W, 3). What lies under `holes` (H, W) is to be filled, so coloured ink there
    does not make a gray picture a coloured one."""
    red, green, blue = cv2.split(pixels)
    apart = cv2.max(cv2.absdiff(red, green), cv2.absdiff(green, blue))
    around = cv2.bitwise_not(holes.view(np.uint8) * 255)
    planes = [red, green, blue] if cv2.countNonZero(cv2.bitwise_and(apart, around)) else [red]
    return cast(Planes, planes)


def picture_of(planes: Planes) -> Pixels:
    """The RGB picture (H, W, 3) of its planes."""
    return cast(Pixels, cv2.merge(planes if len(planes) == 3 else planes * 3))


def brightest_plane(planes: Planes) -> Pixels:
    """The largest channel (H, W)."""
    return planes[0] if len(planes) == 1 else cast(Pixels, cv2.max(cv2.max(planes[0], planes[1]), planes[2]))


def fill(pictures: Iterable[Planes], mask: Mask, radius: float, faint: int = -1) -> None:
    """Fill `mask` (H, W) in every plane from its surroundings, in place; what lies outside it is untouched.

    Planes go three at a time as the channels of one picture: the solver treats channels apart, but walks the mask once.
    Where the channels of a picture differ by no more than `faint` around the holes, which is a codec's doing, one is
    solved for all three.
    """
    if not mask.any():
        return
    rows, columns = bounds(mask)
    window = np.s_[max(0, rows.start - _RIM) : rows.stop + _RIM, max(0, columns.start - _RIM) : columns.stop + _RIM]
    hole = np.ascontiguousarray(mask[window])
    holes, rim = hole.view(np.uint8), dilated(hole, round(radius) + 1) & ~hole
    shown = [[plane[window] for plane in picture] for picture in pictures]
    jobs: list[Planes] = []  # planes of which the first is solved for all
    for planes in shown:
        jobs += [planes] if len(planes) == 3 and _is_gray(planes, rim, faint) else [[plane] for plane in planes]
    for start in range(0, len(jobs), 3):
        three = jobs[start : start + 3]
        sources = [planes[0] for planes in three]
        together = cv2.merge((sources * 2)[:3]) if len(three) > 1 else np.ascontiguousarray(sources[0])
        for planes, solved in zip(three, cv2.split(cv2.inpaint(together, holes, radius, cv2.INPAINT_NS)), strict=False):
            for plane in planes:
                np.copyto(plane, solved, where=hole)


def _is_gray(planes: Planes, rim: Mask, faint: int) -> bool:
    red, green, blue = planes
    apart = cv2.max(cv2.absdiff(red, green), cv2.absdiff(green, blue))[rim]
    return bool((apart > faint).mean() < _STRAY)


def inpainted(pixels: Pixels, mask: Mask, radius: float) -> Pixels:
    """Fill `mask` (H, W) of RGB `pixels` (H, W, 3) from its surroundings; pixels outside the mask are untouched."""
    planes = planes_of(pixels, mask)
    fill([planes], mask, radius)
    return picture_of(planes)
