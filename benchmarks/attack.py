"""A strong reader of what cleaning left: it knows where each string stood and what it said.

The place is cut out, stretched to full contrast, and read as one line by Tesseract (both polarities) and by the
PP-OCR recogniser; a string counts as readable where any reading is at least 60 % like it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from difflib import SequenceMatcher

import cv2
import numpy as np
from numpy.typing import NDArray
from overlays import Text

from usfmae.core.clean.ocr import recognise, tesseract_line

Pixels = NDArray[np.uint8]

SIMILARITY = 0.6
_MARGIN = 4


def folded(text: str) -> str:
    """Lower-case letters and digits without accents."""
    plain = unicodedata.normalize("NFKD", text.lower().replace("ł", "l").replace("ø", "o").replace("ı", "i"))
    return "".join(c for c in plain if c.isalnum() and c.isascii())


def similarity(read: str, truth: str) -> float:
    return SequenceMatcher(None, folded(read), folded(truth), autojunk=False).ratio()


def _readings(crop: Pixels) -> Iterator[str]:
    low, high = np.percentile(crop, (1, 99.5))
    stretched = np.clip((crop - low) * (255 / max(1.0, high - low)), 0, 255).astype(np.uint8)
    for view in (crop, stretched):
        yield recognise(view, "f32")[0]
    yield tesseract_line(stretched, "tesserocr")[0]
    yield tesseract_line(255 - stretched, "tesserocr")[0]


def readable(pixels: Pixels, string: Text) -> bool:
    """Whether the string can still be read in an RGB picture (H, W, 3)."""
    x0, y0, x1, y1 = string.box
    crop = pixels[max(0, y0 - _MARGIN) : y1 + _MARGIN, max(0, x0 - _MARGIN) : x1 + _MARGIN]
    if int(crop.max()) - int(crop.min()) < 3:  # one colour: nothing to read
        return False
    enlarged = cv2.resize(crop, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    return any(similarity(text, string.text) >= SIMILARITY for text in _readings(enlarged))
