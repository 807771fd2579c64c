"""The project's own small network: where text and graphics are drawn over speckle, print of low contrast included.

General text detectors are trained on photographs and pages; print 20 to 50 gray levels above harsh speckle, and letters
set far apart, escape them. This one (a hundred thousand weights, `weights/overlay.xml`) was trained on drawn text and
graphics over simulated speckle and real tissue (`benchmarks/train_overlay.py`), its weights and levels are of eight bits
(`benchmarks/quantise_overlay.py`), and it takes a fifteenth of the time.
It answers at a quarter of the size: 1 where a line of text stands, or within two pixels of a drawn stroke.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from usfmae.core.clean.ocr import Probability, compiled
from usfmae.core.types import Mask, Pixels

_WEIGHTS = Path(__file__).parent / "weights" / "overlay.xml"
_AROUND = 31  # pixels over which level and spread are evened
_LEAST, _MOST = 4.0, 3.0  # gray levels added to the spread; spreads from the level at most
_GRID = 8  # the network halves the picture three times
SMALLER, _LEAST_SIDE = (
    (0.5, 0.25),
    72,
)  # shares of the size at which large letters are looked for; pixels of such a view
_COLOURED, _FEWEST = 8, 60  # difference of the channels, and pixels of it, from which there may be print in a colour
_ROOTS = np.sqrt(np.arange(256, dtype=np.float32) / 255)


@lru_cache(maxsize=1)
def _network() -> Any:
    return compiled(_WEIGHTS)


def features(gray: Pixels) -> NDArray[np.float32]:
    """What the network sees of (H, W): the square root of the level, and the level evened by its surroundings; both
    (2, H, W) float32."""
    around = _AROUND, _AROUND
    mean = cv2.boxFilter(gray, cv2.CV_32F, around)
    variance = cv2.sqrBoxFilter(gray, cv2.CV_32F, around) - cv2.multiply(mean, mean)
    spread = cv2.sqrt(np.maximum(variance, 0))
    evened = np.clip((gray - mean) / (spread + _LEAST), -_MOST, _MOST) / 2
    return np.stack([cv2.LUT(gray, _ROOTS), evened]).astype(np.float32, copy=False)


def _seen(gray: Pixels) -> Iterator[Probability]:
    """Probability of text and then of graphics at each pixel of a gray picture (H, W), each (H, W) float32."""
    height, width = gray.shape
    padded = np.pad(features(gray), ((0, 0), (0, -height % _GRID), (0, -width % _GRID)), mode="edge")
    request = _network()
    request.infer([padded[None]])
    for logits in np.array(request.get_output_tensor(0).data[0]):
        yield _resized(1 / (1 + np.exp(-logits)), padded.shape[2], padded.shape[1])[:height, :width]


def overlay_probability(gray: Pixels) -> tuple[Probability, Probability]:
    """Probability of text and of graphics at each pixel of a gray picture (H, W), each (H, W) float32."""
    text, graphics = _seen(gray)
    return text, graphics


def text_seen_at(gray: Pixels, share: float) -> Probability:
    """Probability of text at each pixel of a gray picture (H, W) that is seen at a share of its size; 0 where that is too
    small."""
    if share < 1 and min(gray.shape) * share < _LEAST_SIDE:
        return np.zeros(gray.shape, np.float32)
    small = cv2.resize(gray, None, fx=share, fy=share, interpolation=cv2.INTER_AREA).astype(np.uint8)
    return _resized(next(_seen(small)), gray.shape[1], gray.shape[0])


def large_text_probability(gray: Pixels) -> Probability:
    """Probability of text at each pixel of a gray picture (H, W) that is seen at a half and at a quarter of its size:
    letters of 26 pixels and more, and letters out of focus, are there what the network was trained on."""
    half, quarter = (text_seen_at(gray, share) for share in SMALLER)
    return np.maximum(half, quarter)


def coloured_text_probability(difference: Pixels, lit: Mask) -> Probability:
    """Probability of text in how far the channels differ (H, W): tissue has little colour, so that print in a colour
    stands out there however faint it is. The colour that most of what is lit has is the display's."""
    common = int(np.median(difference[lit])) if lit.any() else 0
    own = cv2.subtract(difference, np.full_like(difference, common)).astype(np.uint8)
    if np.count_nonzero(own > _COLOURED) < _FEWEST:
        return np.zeros(difference.shape, np.float32)
    return np.maximum(overlay_probability(own)[0], large_text_probability(own))


def _resized(plane: Probability, width: int, height: int) -> Probability:
    return cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)
