"""Text over tissue: the anchored detector, its boxes filled whole."""

from __future__ import annotations

import cv2
import numpy as np

from usfmae.core.clean.engines import Probability, text_probability
from usfmae.core.clean.morphology import brightest_of, components
from usfmae.core.config.clean import CleanSettings
from usfmae.core.flow import Mask, Pixels

_THICKEST = 48  # pixels, before growing; a line of text on a screen is thinner
_UNCLIP = 1.6  # the detector finds shrunken text; its authors grow it by this factor of area / perimeter


def grown(component: Mask) -> Mask:
    """The rotated box around a component (H, W), grown to the full text."""
    points = cv2.findNonZero(component.astype(np.uint8))
    (x, y), (w, h), angle = cv2.minAreaRect(points)
    margin = _UNCLIP * (w * h) / max(1.0, 2 * (w + h)) + 1
    box = cv2.boxPoints(((x, y), (w + 2 * margin, h + 2 * margin), angle))
    drawn = np.zeros(component.shape, np.uint8)
    cv2.fillConvexPoly(drawn, box.round().astype(np.int32), 1)
    return drawn > 0


def lit(pixels: Pixels, inside: Mask) -> Pixels:
    """The largest channel (H, W), filled outside the region with the mean level of the region.

    In black corners the detector sees the rim of a page: on simulated sectors with fine speckle it called 15 to 47 %
    of the tissue text, with filled corners 1 %. Black within the region stays: faint text may stand there.
    """
    bright = brightest_of(pixels)
    if inside.any():
        bright[~inside] = round(float(bright[inside].mean()))
    return bright


def brightest(pixels: Pixels, inside: Mask) -> Pixels:
    """The largest channel three times (H, W, 3): coloured ink at its full contrast."""
    return cv2.merge([lit(pixels, inside)] * 3).astype(np.uint8)


def evened(pixels: Pixels, inside: Mask) -> Pixels:
    """The largest channel with its local contrast evened (H, W, 3): faint ink becomes visible to the detector."""
    return cv2.merge([cv2.createCLAHE(4.0, (8, 8)).apply(lit(pixels, inside))] * 3).astype(np.uint8)


def boxes(probability: Probability, threshold: float, mean: float = 0.4, smallest: int = 6) -> Mask:
    """Text boxes as a mask (H, W): components above `threshold` whose mean probability is at least `mean`."""
    found = np.zeros(probability.shape, bool)
    for window, part in components(probability > threshold, pad=40):
        if part.sum() >= smallest and probability[window][part].mean() >= mean and not is_blob(part):
            found[window] |= grown(part)
    return found


def is_blob(component: Mask) -> bool:
    """Whether a component is thicker than any line of text: evened speckle, not print."""
    points = cv2.findNonZero(component.astype(np.uint8))
    return bool(min(cv2.minAreaRect(points)[1]) > _THICKEST)


def words(pixels: Pixels, inside: Mask, settings: CleanSettings) -> Mask:
    """Text over the tissue of an RGB crop (H, W), whose region is `inside`.

    Where evening turns bright speckle into what the detector takes for a page of print, the picture as it is decides.
    """
    probability = text_probability(evened(pixels, inside), settings.precision)
    found = boxes(probability, settings.text_threshold)
    if any(is_blob(part) for _, part in components(probability > settings.text_threshold)):
        found |= boxes(text_probability(brightest(pixels, inside), settings.precision), settings.text_threshold)
    return found
