"""Looking again: the detector at a low threshold and a second engine, at full resolution, on the cleaned frame."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

from usfmae.core.clean.engines import Probability, letters, recognise, tesseract_data, tesseract_line
from usfmae.core.clean.morphology import bounds, components, gray_of
from usfmae.core.clean.text import THICKEST, grown, is_blob
from usfmae.core.config.clean import CleanSettings
from usfmae.core.flow import Mask, Pixels

_LIKE = 0.6  # share of letters in common from which a reading is taken for a word of the header


def is_text(crop: Pixels, settings: CleanSettings, words: Sequence[str] = ()) -> bool:
    """True where the second engine reads two letters with confidence, or something like one of the header's words."""
    text, confidence = tesseract_line(crop, settings.ocr)
    return (len(letters(text)) >= 2 and confidence > 0.5) or resembles(text, words)


def resembles(text: str, words: Sequence[str]) -> bool:
    """Whether a reading, however doubtful, is like a name, id or date that the header states."""
    read = letters(text).lower()
    if len(read) < 3:
        return False
    return any(SequenceMatcher(None, read, letters(w).lower(), autojunk=False).ratio() >= _LIKE for w in words)


def sparse_words(crop: Pixels) -> Mask:
    """Boxes (H, W) of scattered words that the second engine reads with confidence in a larger area."""
    found = np.zeros(crop.shape[:2], bool)
    data = tesseract_data((255 - gray_of(crop)).astype(np.uint8), "--psm 11")
    fields = ("text", "conf", "left", "top", "width", "height")
    for word, confidence, x, y, width, height in zip(*(data[field] for field in fields), strict=True):
        if len(letters(word)) >= 2 and float(confidence) > 50 and min(width, height) <= THICKEST:
            found[max(0, y - 2) : y + height + 2, max(0, x - 2) : x + width + 2] = True
    return found


def without_vessels(pixels: Pixels, words: Mask, flow: Mask, settings: CleanSettings) -> Mask:
    """Text boxes (H, W) less those of colour flow: largely filled by it, and neither engine reads a word there."""
    kept = words.copy()
    for window, part in components(words) if (words & flow).any() else ():
        if (flow[window] & part).sum() < 0.3 * part.sum() or is_text(pixels[window], settings):
            continue
        line, confidence = recognise(pixels[window], settings.precision)
        if len(letters(line)) < 2 or confidence < 0.7:
            kept[window] &= ~part
    return kept


def left(pixels: Pixels, probability: Probability, settings: CleanSettings, words: Sequence[str] = ()) -> Mask:
    """Text still there (H, W): what the detector is sure of, and what it doubts but the second engine reads."""
    found = np.zeros(probability.shape, bool)
    for window, part in components(probability > settings.doubt_threshold, pad=40):
        if part.sum() < 12:
            continue
        if is_blob(part):
            # Thicker than any line: speckle, unless the second engine finds words in it.
            found[window] |= sparse_words(pixels[window])
            continue
        box = grown(part)
        if probability[window][part].mean() > 0.5 or is_text(pixels[window][bounds(box)], settings, words):
            found[window] |= box
    return found
