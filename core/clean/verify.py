"""Looking again: the detector at a low threshold and a second engine, at full resolution, on the cleaned frame."""

from __future__ import annotations

import numpy as np

from usfmae.core.clean.engines import Probability, letters, tesseract_line
from usfmae.core.clean.morphology import bounds, components
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
    for window, part in components(probability > settings.doubt_threshold, pad=40):
        if part.sum() < 12:
            continue
        box = grown(part)
        if probability[window][part].mean() > 0.5 or is_text(pixels[window][bounds(box)], settings):
            found[window] |= box
    return found
