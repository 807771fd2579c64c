"""What is drawn over a scan, and how much of the scan would go on suspicion alone.

Certain by a second sign is colour ink and what measures; and a text that holds such ink, that stands out from the
tissue as print does, or that an engine reads. Everything else may be tissue after all: faint texture taken for a page
of text, echoes taken for ruled lines. A little of it is the price of leaving no name behind; where it is much, a person
decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from usfmae.core.clean import region, verify
from usfmae.core.clean.graphics import CONTRAST, ridge
from usfmae.core.clean.morphology import bounds, brightest_of, gray_of
from usfmae.core.clean.text import Box
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import Mask, Pixels

_INK = 0.1  # share of a box; in a dotted line's it is a tenth, in a name's a third
_SAME = 0.5  # share of a box that lies within certain ones: the same text twice


@dataclass(frozen=True)
class Overlay:
    """What is drawn over the tissue of one crop, each (H, W)."""

    drawn: Mask  # text, colour ink, graphics, their rim
    flow: Mask  # colour flow, which stays
    suspect: Mask  # where another look is due
    certain: Mask  # what no tissue looks like: colour ink, measurements
    words: list[Box]  # text that the detector is sure of
    faint: list[Box]  # and what it suspects


def suspected(pixels: Pixels, removed: Mask, seen: Overlay, settings: CleanSettings) -> float:
    """The share of an RGB crop's lit pixels that was `removed` (H, W) on suspicion alone.

    The engines, which are slow, are asked only where the answer decides.
    """
    gray = gray_of(pixels)
    lit = gray > region.background(gray) + region.DARK
    doubtful, whole = removed & lit & ~seen.certain, max(1, int(lit.sum()))
    most = settings.most_suspected * whole
    if doubtful.sum() > most:
        sure, unread = _plain(pixels, seen)
        for window, box in sorted(unread, key=lambda each: -int(each[1].sum())):
            if (doubtful & ~sure).sum() <= most:
                break
            same = (sure[window] & box).sum() > _SAME * box.sum()
            if same or verify.is_word(pixels[window][bounds(box)], settings):
                sure[window] |= box
        doubtful &= ~sure
    return float(doubtful.sum() / whole)


def _plain(pixels: Pixels, seen: Overlay) -> tuple[Mask, list[Box]]:
    """Text (H, W) that is certain by its ink alone, and the boxes of which that cannot be said."""
    stroke = ridge(brightest_of(pixels)) > CONTRAST
    sure, unread = np.zeros(stroke.shape, bool), []
    for boxes, ink in ((seen.words, seen.certain | stroke), (seen.faint, seen.certain)):
        for window, box in boxes:
            if (ink[window] & box).sum() > _INK * box.sum():
                sure[window] |= box
            else:
                unread.append((window, box))
    return sure, unread
