"""Looking again: the detector at a low threshold and a second engine, at full resolution, on the cleaned frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher

import cv2
import numpy as np

from usfmae.core.clean.morphology import bounds, components, gray_of, labelled
from usfmae.core.clean.ocr import Probability, letters, recognise, tesseract_data, tesseract_line
from usfmae.core.clean.text import THICKEST, Box, grown, is_blob, together
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import Mask, Pixels

_VESSEL = 0.15  # share of flow in a box; a name beside a vessel has less, a vessel taken for text more
_FILLED = 0.5  # share of a find within filled boxes from which it is the fill's doing
_SURE = 0.7  # confidence of a reading that needs no other sign
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


def apart_from_vessels(pixels: Pixels, boxes: Iterable[Box], flow: Mask, settings: CleanSettings) -> list[Box]:
    """Text boxes without colour flow: one with some of it is text only where an engine reads a word there, and from
    the others a vessel that goes on beyond is cut out."""
    found = list(boxes)
    beyond = _beyond(flow, found)
    kept = []
    for window, box in found:
        if (flow[window] & box).sum() < _VESSEL * box.sum():
            kept.append((window, box & ~beyond[window]))
        elif is_word(pixels[window][bounds(box)], settings):
            kept.append((window, box))
    return kept


def _beyond(flow: Mask, boxes: Sequence[Box]) -> Mask:
    """Flow (H, W) in parts that lie outside of all boxes for the most part: a vessel does, a coloured letter not."""
    if not boxes or not flow.any():
        return np.zeros(flow.shape, bool)
    count, labels, stats, _ = labelled(flow)
    within = np.bincount(labels[together(boxes, flow.shape)], minlength=count)
    vessel = within < 0.5 * stats[:, cv2.CC_STAT_AREA]
    vessel[0] = False
    return vessel[labels]


def is_word(crop: Pixels, settings: CleanSettings) -> bool:
    """Whether either engine reads a word of two letters with great confidence; in a vessel Tesseract now and then reads
    two with a little."""
    line, confidence = tesseract_line(crop, settings.ocr)  # five times quicker than the recogniser
    if len(letters(line)) < 2 or confidence < _SURE:
        line, confidence = recognise(crop, settings.precision)
    return len(letters(line)) >= 2 and confidence >= _SURE


def left(
    pixels: Pixels, probability: Probability, filled: Mask, settings: CleanSettings, words: Sequence[str] = ()
) -> Iterator[Box]:
    """Text still there: what the detector is sure of, and what it doubts but the second engine reads.

    Within boxes that were filled whole (H, W) nothing of the original is left: what looks like text there is the fill.
    """
    for window, part in components(probability > settings.doubt_threshold, pad=40):
        if part.sum() < 12 or filled[window][part].mean() > _FILLED:
            continue
        if is_blob(part):
            # Thicker than any line: speckle, unless the second engine finds words in it.
            if (print_ := sparse_words(pixels[window])).any():
                yield window, print_
            continue
        box = grown(part)
        if probability[window][part].mean() > 0.5 or is_text(pixels[window][bounds(box)], settings, words):
            yield window, box
