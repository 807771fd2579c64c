"""Text over tissue: the anchored detector, its boxes filled whole."""

from __future__ import annotations

import cv2
import numpy as np
from usfmae.core.clean.engines import Probability
from usfmae.core.flow import Mask

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


def boxes(probability: Probability, threshold: float, mean: float = 0.5, smallest: int = 6) -> Mask:
    """Text boxes as a mask (H, W): components above `threshold` whose mean probability is at least `mean`."""
    found = np.zeros(probability.shape, bool)
    count, labels, stats, _ = cv2.connectedComponentsWithStats((probability > threshold).astype(np.uint8))
    for index in range(1, count):
        x, y, w, h, area = stats[index]
        if area < smallest:
            continue
        pad = 4 + max(w, h)
        y0, x0, y1, x1 = max(0, y - pad), max(0, x - pad), y + h + pad, x + w + pad
        part = labels[y0:y1, x0:x1] == index
        if probability[y0:y1, x0:x1][part].mean() >= mean:
            found[y0:y1, x0:x1] |= grown(part)
    return found
