"""Looking again: the whole of what is kept, on a view that the first look did not use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from usfmae.core.clean import region
from usfmae.core.clean.finding import Box, Crop, Finding, together
from usfmae.core.clean.inpaint import inpainted
from usfmae.core.clean.morphology import bounds, components, gray_of
from usfmae.core.clean.ocr import Probability, is_text, is_word, sparse_words
from usfmae.core.clean.text import THICKEST, apart_from_flow, grown, is_blob, second_look
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import Mask, Pixels

_SMALLEST = 12  # pixels above the doubt threshold
_FILLED = 0.5  # share of a find within filled boxes from which it is the fill's doing
_MARGIN = 64  # pixels around a repair that are looked at again
_SURE = 0.5  # mean probability of a find that needs no reading


def left(crop: Crop, probability: Probability, filled: Mask, settings: CleanSettings) -> tuple[list[Box], int]:
    """Text still there: what the detector is sure of, and what it doubts but the second engine reads; and how many
    places are thicker than any line of text though the detector is sure of them.

    Within boxes that were filled whole (H, W) nothing of the original is left: what looks like text there is the fill.
    """
    boxes, thick = [], 0
    for window, part in components(probability > settings.doubt_threshold, pad=40):
        if part.sum() < _SMALLEST or filled[window][part].mean() > _FILLED:
            continue
        sure = probability[window][part].mean() > _SURE
        if is_blob(part):
            # Thicker than any line: large print, or speckle unless the second engine finds words in it.
            thick += sure
            if (print_ := sparse_words(crop.pixels[window], THICKEST)).any():
                boxes.append((window, print_))
            continue
        box = grown(part)
        if sure or is_text(crop.pixels[window][bounds(box)], settings, crop.words):
            boxes.append((window, box))
    return boxes, thick


def verified(
    crop: Crop, picture: Pixels, filled: Mask, settings: CleanSettings
) -> tuple[Pixels, list[list[Box]], int, bool]:
    """A filled picture (H, W, 3) after verification and repair: the picture, the text each round of repair filled, how
    many places no engine reads though they are text for sure, and whether the picture is free of text.

    `crop` tells the region, the flow and the header's words; `filled` (H, W) are the text boxes filled so far.
    """
    rounds: list[list[Box]] = []
    everywhere = slice(0, filled.shape[0]), slice(0, filled.shape[1])
    window, unread = everywhere, 0
    for _ in range(settings.repairs + 1):
        looked = replace(crop, pixels=picture)
        probability = np.zeros(filled.shape, np.float32)
        probability[window] = second_look(looked.cut(window), settings)
        candidates, thick = left(looked, probability, filled, settings)
        boxes, unread_here = apart_from_flow(looked, candidates, probability, settings)
        unread += unread_here + thick
        if not boxes:
            return picture, rounds, unread, True
        rounds.append(boxes)
        boxed = together(boxes, filled.shape)
        picture, filled = inpainted(picture, boxed, settings.inpaint_radius), filled | boxed
        window = around(boxed)  # nothing else has changed since it was looked at
    return picture, rounds, unread, False


def around(mask: Mask) -> tuple[slice, slice]:
    """The box around a mask with the margin that the detector needs to see a line of text whole."""
    rows, columns = bounds(mask)
    return slice(max(0, rows.start - _MARGIN), rows.stop + _MARGIN), slice(
        max(0, columns.start - _MARGIN), columns.stop + _MARGIN
    )


_SAME = 0.5  # share of a box that lies within certain ones: the same text twice
_INK = 0.1  # share of colour ink and measurements in a box that is print


def lit_of(pixels: Pixels) -> Mask:
    """Where an RGB crop is brighter than the screen behind the scan (H, W)."""
    gray = gray_of(pixels)
    return gray > region.background(gray) + region.DARK


def suspected(pixels: Pixels, removed: Mask, finding: Finding, settings: CleanSettings) -> float:
    """The share of an RGB crop's lit pixels that was `removed` (H, W) on suspicion alone.

    The engines, which are slow, are asked only where the answer decides.
    """
    lit = lit_of(pixels)
    doubtful, whole = removed & lit & ~finding.certain, max(1, int(lit.sum()))
    most = settings.most_suspected * whole
    sure = finding.certain.copy()
    for window, box in sorted(finding.boxes, key=lambda each: -int(each[1].sum())):
        if (doubtful & ~sure).sum() <= most:
            break
        share = (sure[window] & box).sum() / max(1, box.sum())
        if share > _SAME or share > _INK or is_word(pixels[window][bounds(box)], settings):
            sure[window] |= box
    return float((doubtful & ~sure).sum() / whole)
