"""Near-duplicate frames of one scan, by perceptual hash."""

from __future__ import annotations

import cv2
import numpy as np

from usfmae.core.types import Pixels

SIDE = 16  # 16 x 16 comparisons: 256 bits


def difference_hash(pixels: Pixels) -> int:
    """256 bits: is each cell of a 16 x 17 thumbnail darker than its right neighbour? (Krawetz's dHash.)"""
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


class Seen:
    """Hashes of the frames of one scan."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.hashes: list[int] = []

    def is_duplicate(self, pixels: Pixels) -> bool:
        """True where an earlier frame differs in fewer than `bits` bits; else the frame is remembered."""
        if self.bits == 0:
            return False
        code = difference_hash(pixels)
        if any((code ^ other).bit_count() < self.bits for other in self.hashes):
            return True
        self.hashes.append(code)
        return False
