"""Looking again: the detector at a low threshold and a second engine, at full resolution, on the cleaned frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher

import numpy as np

from usfmae.core.clean.engines import Probability, letters, recognise, tesseract_data, tesseract_line
from usfmae.core.clean.morphology import bounds, components, gray_of
from usfmae.core.clean.text import THICKEST, Box, grown, is_blob
from usfmae.core.config.clean import CleanSettings
from usfmae.core.flow import Mask, Pixels

_VESSEL = 0.15  # share of flow in a box; a name beside a vessel has less, a vessel taken for text more
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


def apart_from_vessels(pixels: Pixels, boxes: Iterable[Box], flow: Mask, settings: CleanSettings) -> Mask:
    """Text boxes as a mask (H, W) without those that are colour flow: some of it is in the box, and neither engine
    reads a word there."""
    kept = np.zeros(flow.shape, bool)
    for window, box in boxes:
        if (flow[window] & box).sum() < _VESSEL * box.sum() or _is_word(pixels[window][bounds(box)], settings):
            kept[window] |= box
    return kept


def _is_word(crop: Pixels, settings: CleanSettings) -> bool:
    if is_text(crop, settings):  # five times quicker than the recogniser
        return True
    line, confidence = recognise(crop, settings.precision)
    return len(letters(line)) >= 2 and confidence >= 0.7


def left(pixels: Pixels, probability: Probability, settings: CleanSettings, words: Sequence[str] = ()) -> Iterator[Box]:
    """Text still there: what the detector is sure of, and what it doubts but the second engine reads."""
    for window, part in components(probability > settings.doubt_threshold, pad=40):
        if part.sum() < 12:
            continue
        if is_blob(part):
            # Thicker than any line: speckle, unless the second engine finds words in it.
            if (print_ := sparse_words(pixels[window])).any():
                yield window, print_
            continue
        box = grown(part)
        if probability[window][part].mean() > 0.5 or is_text(pixels[window][bounds(box)], settings, words):
            yield window, box
