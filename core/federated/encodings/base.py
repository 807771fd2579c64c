"""What a lossy encoding is."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Exact = NDArray[np.float64]


class Encoding(Protocol):
    """A lossy encoding of values (n,)."""

    block: int  # values that share an entry of the head; a stretch begins at a multiple of it
    residual: str  # name of the encoding in whose form `pack_residual` writes; its block divides this one's
    decay: float  # share of what a packing left out that is added to the next difference

    def size(self, count: int) -> int:
        """Bytes of `count` values."""
        ...

    def head(self, count: int) -> int:
        """Bytes of the head of `count` values."""
        ...

    def pack(self, values: Floats) -> tuple[bytes, float]:
        """Bytes, and the sum of squares of what they express, which is subtracted from `values` in place."""
        ...

    def unpack(self, data: bytes | memoryview, count: int) -> Exact:
        """What the bytes express, (count,)."""
        ...

    def add(self, data: bytes | memoryview, base: Floats) -> Floats:
        """`base` (n,) plus what the bytes express, multiplied and added in float32: the same bits on every machine."""
        ...

    def square(self, data: bytes | memoryview, count: int) -> float:
        """Sum of squares of what the bytes express."""
        ...

    def largest(self, data: bytes | memoryview, count: int) -> float:
        """No value that the bytes express is further from 0 than this; NaN where one may be NaN."""
        ...

    def pack_residual(self, error: Floats, data: bytes) -> bytes:
        """What `pack` left in `error` beside `data`, packed for the disk; `error` is worked on in place."""
        ...

    def add_residual(self, residual: bytes, values: Floats) -> Floats:
        """`values` (n,), worked on in place, plus what an earlier packing left out."""
        ...
