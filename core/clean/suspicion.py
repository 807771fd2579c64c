"""How much of a scan would go on suspicion alone.

Certain by a second sign is colour ink and what measures; and a text that holds such ink, that stands out from the
tissue as print does, or that an engine reads. Everything else may be tissue after all: faint texture taken for a page
of text, echoes taken for ruled lines. A little of it is the price of leaving no name behind; where it is much, a person
decides.
"""

from __future__ import annotations

from usfmae.core.clean import region
from usfmae.core.clean.finding import Finding
from usfmae.core.clean.morphology import bounds, gray_of
from usfmae.core.clean.reading import is_word
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import Mask, Pixels

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
