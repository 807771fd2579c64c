"""What the text engines read in a crop, upright, turned and mirrored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

import numpy as np

from usfmae.core.clean.morphology import gray_of
from usfmae.core.clean.ocr import letters, recognise, tesseract_data, tesseract_line
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import Mask, Pixels

_SURE = 0.7  # confidence of a reading that needs no other sign
_LIKE = 0.6  # share of letters in common from which a reading is taken for a word of the header
_UPRIGHT = 1.5  # a box so many times longer than high is not read across


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


def is_word(crop: Pixels, settings: CleanSettings, turned: bool = False) -> bool:
    """Whether either engine reads a word of two letters with great confidence; in a vessel Tesseract now and then reads
    two with a little. Where `turned`, also in the crop turned by quarters and mirrored."""
    line, confidence = tesseract_line(crop, settings.ocr)  # five times quicker than the recogniser
    if len(letters(line)) >= 2 and confidence >= _SURE:
        return True
    readings = (recognise(view, settings.precision) for view in (orientations(crop) if turned else (crop,)))
    return any(len(letters(line)) >= 2 and confidence >= _SURE for line, confidence in readings)


def orientations(crop: Pixels) -> Iterator[Pixels]:
    """The crop (H, W, 3) as a line of text may stand in it: of the eight ways to turn and mirror it those that lie
    along its longer side."""
    height, width = crop.shape[:2]
    quarters = [q for q in range(4) if (height, width)[q % 2] < _UPRIGHT * (width, height)[q % 2]]
    for quarter in quarters:
        view = np.rot90(crop, quarter)
        yield np.ascontiguousarray(view)
        yield np.ascontiguousarray(view[:, ::-1])


def sparse_words(crop: Pixels, thickest: float) -> Mask:
    """Boxes (H, W) of scattered words that the second engine reads with confidence in a larger area."""
    mask = np.zeros(crop.shape[:2], bool)
    data = tesseract_data((255 - gray_of(crop)).astype(np.uint8), "--psm 11")
    fields = ("text", "conf", "left", "top", "width", "height")
    for word, confidence, x, y, width, height in zip(*(data[name] for name in fields), strict=True):
        if len(letters(word)) >= 2 and float(confidence) > 50 and min(width, height) <= thickest:
            mask[max(0, y - 2) : y + height + 2, max(0, x - 2) : x + width + 2] = True
    return mask
