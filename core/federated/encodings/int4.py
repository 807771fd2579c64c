"""int4 in blocks of 128: scales (ceil(n / 128), float32), then two codes of -7..7 a byte, each block 64 bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from usfmae.core.federated.encodings.base import Exact, Floats
from usfmae.core.federated.encodings.int8 import Int8

BLOCK = 128
STRIDE = 512  # blocks worked on at a time
RESIDUAL = Int8()  # half a step of int4 is 1/14 of a block's largest value: int8 with scales of its own holds it


class Int4:
    block = BLOCK
    residual = "int8"
    decay = 1.0

    def size(self, count: int) -> int:
        return self.head(count) + BLOCK // 2 * _blocks(count)

    def head(self, count: int) -> int:
        return 4 * _blocks(count)

    def pack(self, values: Floats) -> tuple[bytes, float]:
        count, square = values.size, 0.0
        scales = np.empty(_blocks(count), "<f4")
        body = np.empty((_blocks(count), BLOCK // 2), np.uint8)
        for start in range(0, len(scales), STRIDE):
            piece = values[start * BLOCK : (start + STRIDE) * BLOCK]
            rows = np.zeros((_blocks(piece.size), BLOCK), np.float32)
            rows.reshape(-1)[: piece.size] = piece
            # One scale a block: its largest value is code 7.
            scale = np.abs(rows).max(axis=1) / np.float32(7)
            rows /= np.where(scale > 0, scale, np.float32(1))[:, None]
            np.clip(np.rint(rows, out=rows), -7, 7, out=rows)
            square += float(np.square(scale, dtype=np.float64) @ np.einsum("bi,bi->b", rows, rows))
            # Two codes a byte, the first in the lower half, each plus 8.
            codes = (rows + 8).astype(np.uint8)
            scales[start : start + STRIDE] = scale
            body[start : start + STRIDE] = codes[:, 0::2] | (codes[:, 1::2] << 4)
            rows *= scale[:, None]
            piece -= rows.reshape(-1)[: piece.size]
        return scales.tobytes() + body.tobytes(), square

    def unpack(self, data: bytes | memoryview, count: int) -> Exact:
        scales, codes = _split(data, count)
        return np.asarray((codes * scales[:, None].astype(np.float64)).reshape(-1)[:count])

    def add(self, data: bytes | memoryview, base: Floats) -> Floats:
        scales, codes = _split(data, base.size)
        return np.asarray(base + (codes.astype(np.float32) * scales[:, None]).reshape(-1)[: base.size])

    def square(self, data: bytes | memoryview, count: int) -> float:
        return float(np.square(self.unpack(data, count)).sum())

    def largest(self, data: bytes | memoryview, count: int) -> float:
        return 8 * float(np.abs(np.frombuffer(data, "<f4", _blocks(count))).max(initial=0))

    def pack_residual(self, error: Floats, data: bytes) -> bytes:
        return RESIDUAL.pack_alone(error)

    def add_residual(self, residual: bytes, values: Floats) -> Floats:
        return RESIDUAL.add_in_place(residual, values)


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _split(data: bytes | memoryview, count: int) -> tuple[Floats, NDArray[np.int8]]:
    """Scales (blocks,) and codes (blocks, BLOCK)."""
    head = _blocks(count)
    pairs = np.frombuffer(data, np.uint8, head * BLOCK // 2, offset=4 * head).reshape(head, BLOCK // 2)
    codes = np.empty((head, BLOCK), np.int8)
    codes[:, 0::2], codes[:, 1::2] = (pairs & 15).astype(np.int8) - 8, (pairs >> 4).astype(np.int8) - 8
    return np.frombuffer(data, "<f4", head), codes
