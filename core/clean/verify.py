"""Looking again: the detector at a low threshold and a second engine, at full resolution, on the cleaned frame."""

from __future__ import annotations

import cv2
import numpy as np
from usfmae.core.clean.engines import Probability, letters, tesseract_line
from usfmae.core.clean.text import grown
from usfmae.core.config.clean import CleanSettings
from usfmae.core.flow import Mask, Pixels


def is_text(crop: Pixels, settings: CleanSettings) -> bool:
    """True where the second engine reads at least two letters with confidence."""
    text, confidence = tesseract_line(crop, settings.ocr)
    return len(letters(text)) >= 2 and confidence > 0.5


def left(pixels: Pixels, probability: Probability, settings: CleanSettings) -> Mask:
    """Text still there (H, W): what the detector is sure of, and what it doubts but the second engine reads."""
    found = np.zeros(probability.shape, bool)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        (probability > settings.doubt_threshold).astype(np.uint8)
    )
    for index in range(1, count):
        if stats[index, cv2.CC_STAT_AREA] < 12:
            continue
        part = labels == index
        box = grown(part)
        ys, xs = np.nonzero(box)
        crop = pixels[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        if probability[part].mean() > 0.5 or is_text(crop, settings):
            found |= box
    return found
