"""Text over tissue: the anchored detector, its boxes filled whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import cv2
import numpy as np

from usfmae.core.clean.morphology import brightest_of, components, dilated
from usfmae.core.clean.ocr import Probability, text_probability
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import Mask, Pixels

THICKEST = 48  # pixels, before growing; a line of text on a screen is thinner
_PAGE = 0.1  # share of a crop above which text is doubted: five lines over tissue take 0.03, a page of speckle 0.2
_LINE = 2.0  # a line of text is so many times longer than high
_GOES_ON = 1.0  # heights by which a suspected text may go on at its ends
_SMALLEST_FAINT = 60  # pixels of a suspected text
_PAD = 40  # pixels around a component in which its box grows
_UNCLIP = 1.6  # the detector finds shrunken text; its authors grow it by this factor of area / perimeter


View = Callable[[Pixels], Pixels]
Box = tuple[tuple[slice, slice], Mask]  # a window of the picture, and the text within it


def grown(component: Mask, along: float = 0.0) -> Mask:
    """The rotated box around a component (H, W), grown to the full text, and longer by `along` heights at its ends."""
    points = cv2.findNonZero(component.astype(np.uint8))
    (x, y), (w, h), angle = cv2.minAreaRect(points)
    margin = _UNCLIP * (w * h) / max(1.0, 2 * (w + h)) + 1
    w, h = (w + 2 * along * h, h) if w > h else (w, h + 2 * along * w)
    box = cv2.boxPoints(((x, y), (w + 2 * margin, h + 2 * margin), angle))
    drawn = np.zeros(component.shape, np.uint8)
    cv2.fillConvexPoly(drawn, box.round().astype(np.int32), 1)
    return drawn > 0


def brightest(pixels: Pixels) -> Pixels:
    """The largest channel three times (H, W, 3): coloured ink at its full contrast."""
    return cv2.merge([brightest_of(pixels)] * 3).astype(np.uint8)


def evened(pixels: Pixels) -> Pixels:
    """The largest channel with its local contrast evened (H, W, 3): faint ink becomes visible to the detector."""
    return cv2.merge([cv2.createCLAHE(4.0, (8, 8)).apply(brightest_of(pixels))] * 3).astype(np.uint8)


def filled(pixels: Pixels, inside: Mask) -> Pixels:
    """A copy with the mean colour of the region outside it; black within stays, for faint text may stand there."""
    copy = pixels.copy()
    copy[~inside] = pixels[inside].mean(0).round().astype(np.uint8)
    return copy


def probability_of(pixels: Pixels, inside: Mask, view: View, settings: CleanSettings) -> Probability:
    """Text probability (H, W) of an RGB crop under a view.

    Now and then the detector takes fine speckle within black corners for a page of print, and now and then the same
    speckle within filled corners. What looks like a page is therefore looked at in more ways, and only what is text in
    all of them is text.
    """
    probability = text_probability(view(pixels), settings.precision)
    if inside.all() or not _is_page(probability, settings):
        return probability
    full = filled(pixels, inside)
    for picture in (view(full), brightest(full), evened(pixels)):
        probability = np.minimum(probability, text_probability(picture, settings.precision))
        if not _is_page(probability, settings):
            break
    return probability


def _is_page(probability: Probability, settings: CleanSettings) -> bool:
    doubted = probability > settings.doubt_threshold
    return bool(doubted.mean() > _PAGE) or any(is_blob(part) for _, part in components(doubted))


def boxes(probability: Probability, threshold: float, mean: float = 0.4, smallest: int = 6) -> Iterator[Box]:
    """Text boxes: components above `threshold` whose mean probability is at least `mean`."""
    for window, part in components(probability > threshold, pad=_PAD):
        if part.sum() >= smallest and probability[window][part].mean() >= mean and not is_blob(part):
            yield window, grown(part)


def is_blob(component: Mask) -> bool:
    """Whether a component is thicker than any line of text: evened speckle, not print."""
    points = cv2.findNonZero(component.astype(np.uint8))
    return bool(min(cv2.minAreaRect(points)[1]) > THICKEST)


def _is_line(component: Mask) -> bool:
    """Whether a suspected component is large and long enough for a line of text."""
    height, length = sorted(cv2.minAreaRect(cv2.findNonZero(component.astype(np.uint8)))[1])
    return bool(component.sum() >= _SMALLEST_FAINT and length > _LINE * height)


def together(boxes: Iterable[Box], shape: tuple[int, ...]) -> Mask:
    """Boxes as one mask (H, W)."""
    found = np.zeros(shape[:2], bool)
    for window, box in boxes:
        found[window] |= box
    return found


def words(probability: Probability, settings: CleanSettings) -> tuple[list[Box], list[Box]]:
    """Text in a probability (H, W): what the detector is sure of; and how far it suspects that this goes on, and what
    it only suspects. With known words in view it suspects next to nothing in clean tissue (2 of 60 scans), and a tenth
    of the low-contrast strings are only suspected."""
    found, faint = list(boxes(probability, settings.text_threshold)), []
    sure = together(found, probability.shape)
    for window, part in components(probability > settings.faint_threshold, pad=_PAD):
        if is_blob(part):
            continue
        if (sure[window] & part).any():
            faint.append((window, dilated(part, 2)))
        elif _is_line(part) and probability[window][part].max() > settings.doubt_threshold:
            faint.append((window, grown(part, _GOES_ON)))
    return found, faint
