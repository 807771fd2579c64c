"""bfloat16: the upper half of a float32, rounded to nearest even, (n, uint16)."""

from __future__ import annotations

import numpy as np

from usfmae.core.federated.encodings.base import Exact, Floats


class Bf16:
    block = 256  # no value depends on another; stretches are cut as of int8
    residual = "bf16"
    decay = 1.0

    def size(self, count: int) -> int:
        return 2 * count

    def head(self, count: int) -> int:
        return 0

    def pack(self, values: Floats) -> tuple[bytes, float]:
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
        expressed = (rounded << 16).view("<f4")
        values -= expressed
        return rounded.astype("<u2").tobytes(), float(np.square(expressed, dtype=np.float64).sum())

    def unpack(self, data: bytes | memoryview, count: int) -> Exact:
        return np.asarray(_floats(data, count), np.float64)

    def add(self, data: bytes | memoryview, base: Floats) -> Floats:
        return np.asarray(base + _floats(data, base.size))

    def square(self, data: bytes | memoryview, count: int) -> float:
        return float(np.square(self.unpack(data, count)).sum())

    def largest(self, data: bytes | memoryview, count: int) -> float:
        return float(np.abs(_floats(data, count)).max(initial=0))

    def pack_residual(self, error: Floats, data: bytes) -> bytes:
        return self.pack(error)[0]

    def add_residual(self, residual: bytes, values: Floats) -> Floats:
        return self.add(residual, values)


def _floats(data: bytes | memoryview, count: int) -> Floats:
    halves = np.frombuffer(data, "<u2", count)
    return (halves.astype("<u4") << 16).view("<f4")
