"""CountSketch (Charikar, Chen, Farach-Colton 2002): lengths and angles of long vectors from a thousand sums.

Each value is added, with a random sign, to one of WIDTH random buckets. That is linear modulo 2^16, so the sketch of a
masked update plus the sketch of its mask is the sketch of the update. Inner products of sketches are those of the
vectors, with a standard error of sqrt(2 / WIDTH) of the square of a length (4.4 %, 2.2 % of a length) and 1 / sqrt(WIDTH)
of a cosine (.03). Signs and buckets come from a seed that nobody knew when the updates were made.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from usfmae.core.errors import PolicyError
from usfmae.core.federated.sealed.masks import keystream

WIDTH = 1024
PIECE = 2**18  # values at a time: their buckets stay in the processor's cache
Sketch = NDArray[np.uint16]  # (WIDTH,)


class Sketcher:
    """Sketches of several vectors as their values come, piece by piece, all at the same positions."""

    def __init__(self, seed: bytes, vectors: int) -> None:
        self._seed = seed
        self._sums = np.zeros((vectors, 2 * WIDTH), np.int64)

    def add(self, start: int, values: Sequence[NDArray[np.uint16]]) -> None:
        """The values (n,) of each vector from position `start` on."""
        for first in range(0, len(values[0]), PIECE):
            where = slice(first, first + PIECE)
            count = len(values[0][where])
            buckets = keystream(self._seed, start + first, count) & (2 * WIDTH - 1)  # its highest bit is the sign
            places = buckets.astype(np.intp)
            for row, vector in zip(self._sums, values, strict=True):
                # Exact in double precision: at most 2^18 values below 2^16.
                row += np.bincount(places, vector[where], 2 * WIDTH).astype(np.int64)

    def sketches(self) -> list[Sketch]:
        signed = self._sums[:, :WIDTH] - self._sums[:, WIDTH:]
        return list((signed & 0xFFFF).astype(np.uint16))


def joined(one: Sketch, other: Sketch) -> Sketch:
    """The sketch of the sum of both vectors."""
    return one + other  # modulo 2^16


def products(sketches: Sequence[Sketch]) -> NDArray[np.int64]:
    """Inner products (S, S), in codes, of vectors whose sketches these are. The same numbers on every machine."""
    centred = np.stack(sketches).view(np.int16).astype(np.int64)
    return np.asarray(centred @ centred.T)


def unit_for(length: float, count: int) -> float:
    """The unit of codes for updates of `count` values that are expected to have this length.

    As fine as int8 where the sketch can bear it. A bucket holds about sqrt(count / WIDTH) codes' worth; five times the
    expected length must stay below a sixth of 2^16 there, beyond which lengths cannot be told apart.
    """
    finest = 2**16 / (6 * 5 * math.sqrt(max(count / WIDTH, 1.0)))
    typical = min(32.0, finest)  # codes of a typical value
    mantissa, exponent = math.frexp(length / math.sqrt(count) / typical)
    return math.ldexp(round(mantissa * 8) / 8, exponent)  # few digits: a sum of codes times the unit is exact


def to_text(sketch: Sketch) -> str:
    return base64.b64encode(sketch.astype("<u2").tobytes()).decode()


def from_text(text: object) -> Sketch:
    """PolicyError where it is no sketch."""
    try:
        data = base64.b64decode(str(text), validate=True)
    except ValueError:
        data = b""
    if len(data) != 2 * WIDTH:
        raise PolicyError("sketch", f"does not have {WIDTH} sums", "update the other side")
    return np.frombuffer(data, "<u2").astype(np.uint16)
