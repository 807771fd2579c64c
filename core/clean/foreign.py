"""What is no ultrasound of tissue though it lies where the scan is: faces, photographs, renderings, elastograms.

Speckle is uneven everywhere and in the same way. A photograph or a rendered surface is smooth in one place and sharp in
the next. What is found here is never erased nor filled: the frame is kept back for a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from usfmae.core.clean.morphology import brightest_of, channel_difference, closed, components, dilated, gray_of
from usfmae.core.clean.ocr import compiled
from usfmae.core.types import Mask, Pixels

_FACE_MODEL = Path(__file__).parent / "weights" / "centerface.xml"
_FACE, _GRID = 0.3, 32  # probability of a face; the network takes multiples of this
_LONGEST = 320  # pixels of the longer side; there a face of 80 to 400 pixels on a screen of 800 is found
_LONGEST_TURNED = 256  # the same where the picture is turned: 59 of 60 turned faces are found, 60 of 60 at 320
_LONGEST_IN_CLIP, _FACE_IN_CLIP = 128, 0.15  # the same in each frame of a clip, where a find sends it to the look above
_LONGEST_OF_THREE, _FACE_IN_THREE = 256, 0.1  # and in three frames that are the channels of one picture
_SMOOTH, _SMOOTH_SHARE, _UNEVEN = 0.03, 0.19, 7.5  # grain below this is smooth; share of it; sharp beside smooth grain
_GRAIN, _FINE = 9, 2.0  # pixels over which grain is measured; standard deviation of the blur it is measured against
_DARK, _WHITE = 40, 235  # mean levels between which grain can be measured
_PART, _FEWEST = 1500, 500  # pixels of a part that is judged alone, and of what can be measured in it
_BLOCK_CHROMA, _BLOCK_SHARE, _BLOCK_FILL, _BLOCK_SIDE = 30, 0.015, 0.85, 30  # of an elastogram's block
_HUES = (22, 100)  # of OpenCV's 180: yellow, green and cyan, which flow shows little of
_MANY_HUES = 0.15  # share of them in a block from which it is no flow


@lru_cache(maxsize=1)
def _face_network() -> Any:
    return compiled(_FACE_MODEL)


def face_probability(pixels: Pixels) -> float:
    """The highest probability of a face anywhere in an RGB picture, upright or turned by quarters (CenterFace; Xu et al.
    2019, which knows upright faces only)."""
    highest = 0.0
    for quarter, longest in enumerate((_LONGEST, *[_LONGEST_TURNED] * 3)):
        if highest <= _FACE:
            highest = max(highest, _upright_face_probability(np.rot90(pixels, quarter), longest))
    return highest


def may_show_faces(frames: Sequence[Pixels]) -> list[bool]:
    """In which frames of a clip a face may stand: bounds are lower than in stills, and a look at a frame takes a tenth.

    Each is looked at small, in its colours, where large faces are found; and three at a time larger, as the channels of one
    picture, where smaller ones are. Turned faces are looked for in the first, middle and last; one there is one in all.
    """
    found = [_upright_face_probability(frame, _LONGEST_IN_CLIP) > _FACE_IN_CLIP for frame in frames]
    grays = [gray_of(frame) for frame in frames]
    for start in range(0, len(grays), 3):
        three = cv2.merge((grays[start : start + 3] * 3)[:3]).astype(np.uint8)
        if _upright_face_probability(three, _LONGEST_OF_THREE) > _FACE_IN_THREE:
            found[start : start + 3] = [True] * len(grays[start : start + 3])
    ends = cv2.merge([grays[0], grays[len(grays) // 2], grays[-1]])
    turned = (_upright_face_probability(np.rot90(ends, quarter), _LONGEST_OF_THREE) for quarter in (1, 2, 3))
    return [True] * len(found) if max(turned) > _FACE_IN_THREE else found


def _upright_face_probability(pixels: Pixels, longest: int) -> float:
    scale = min(1.0, longest / max(pixels.shape[:2]))
    height, width = (max(_GRID, -(-round(side * scale) // _GRID) * _GRID) for side in pixels.shape[:2])
    resized = cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=cv2.INTER_AREA)
    request = _face_network()
    request.infer([resized.transpose(2, 0, 1)[None].astype(np.float32)])
    return float(request.get_output_tensor(0).data.max())


def is_no_speckle(gray: Pixels, part: Mask) -> bool:
    """Whether a part (H, W) of a gray picture is smooth in one place and sharp in the next, as no speckle is."""
    level = gray.astype(np.float32)
    detail = level - cv2.GaussianBlur(level, (0, 0), _FINE)
    mean = cv2.blur(level, (_GRAIN, _GRAIN))
    spread = np.sqrt(np.maximum(cv2.blur(detail * detail, (_GRAIN, _GRAIN)), 0))
    measurable = part & (mean > _DARK) & (mean < _WHITE)
    if measurable.sum() < _FEWEST:
        return False
    grain = spread[measurable] / mean[measurable]
    smoothest, sharpest = np.quantile(grain, (0.1, 0.75))
    return bool((grain < _SMOOTH).mean() > _SMOOTH_SHARE and sharpest > _UNEVEN * max(smoothest, 0.002))


def coloured_block(pixels: Pixels, inside: Mask) -> bool:
    """Whether a filled rectangle of many hues lies in the region: an elastogram or a map, which no flow looks like."""
    coloured = closed(channel_difference(pixels) > _BLOCK_CHROMA, 2)
    hue = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[:, :, 0]
    many = (hue > _HUES[0]) & (hue < _HUES[1])
    for window, part in components(coloured, smallest=max(_PART, _BLOCK_SHARE * inside.sum())):
        if min(part.shape) >= _BLOCK_SIDE and part.mean() > _BLOCK_FILL and many[window][part].mean() > _MANY_HUES:
            return True
    return False


def foreign(pixels: Pixels, inside: Mask, ownly_coloured: bool) -> tuple[str, str] | None:
    """The reason, and for people what was seen, where a crop shows what is no ultrasound of tissue; else None."""
    if face_probability(pixels) > _FACE:
        return "face-or-photo", "a face detector finds a face in what would be kept"
    return no_speckle(pixels, inside, ownly_coloured)


def no_speckle(pixels: Pixels, inside: Mask, ownly_coloured: bool) -> tuple[str, str] | None:
    """The same without a look for faces."""
    if ownly_coloured or coloured_block(pixels, inside):
        return "not-speckle", "a coloured map lies over the tissue"
    gray = gray_of(pixels)
    parts = dilated(brightest_of(pixels) > _DARK, 3)
    for window, part in components(parts, smallest=_PART):
        if is_no_speckle(gray[window], part):
            return "not-speckle", "a part of what would be kept is smooth and sharp as a photograph is"
    return None
