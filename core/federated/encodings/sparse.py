"""The 64 largest of each 4,096 values, each a place of 12 bits and a code of 2 bits: 0.03 bytes a value.

    levels   (full blocks, 2, bfloat16): the mean size of a block's smaller and of its larger chosen values
    body     (full blocks, 64 x 14 bits): place in the block * 4 + code, in the order of places; code = larger * 2 + negative
    tail     the values after the last full block, as int8

What a round leaves out is most of the difference. It stays where it arose, in int8, and DECAY of it is added to the next
difference (error feedback with decay: SparseLoCo, arXiv:2508.15706), so that an old error does not steer a later round.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from usfmae.core.federated.encodings.base import Exact, Floats
from usfmae.core.federated.encodings.bf16 import Bf16
from usfmae.core.federated.encodings.int8 import Int8

BLOCK = 4096
CHOSEN = 64  # of a block: 1.6 %
WIDTH = CHOSEN * 14 // 8  # bytes of a block's body
STRIDE = 64  # blocks worked on at a time: 1 MiB of float32
DECAY = np.float32(0.95)
TAIL = Int8()


class Sparse:
    block = BLOCK
    residual = "int8"

    def size(self, count: int) -> int:
        full, tail = divmod(count, BLOCK)
        return (4 + WIDTH) * full + TAIL.size(tail)

    def head(self, count: int) -> int:
        return 4 * (count // BLOCK)

    def pack(self, values: Floats) -> tuple[bytes, float]:
        full = values.size // BLOCK
        levels, body = np.empty((full, 2), np.float32), np.empty((full, WIDTH), np.uint8)
        square = 0.0
        for start in range(0, full, STRIDE):
            rows = values[start * BLOCK : min(start + STRIDE, full) * BLOCK].reshape(-1, BLOCK)
            where = slice(start, start + len(rows))
            levels[where], body[where], expressed = _packed_rows(rows)
            square += expressed
        tail, of_tail = TAIL.pack(values[full * BLOCK :])
        return _halves(levels) + body.tobytes() + tail, square + of_tail

    def unpack(self, data: bytes | memoryview, count: int) -> Exact:
        full = count // BLOCK
        values = np.zeros(count)
        places, sizes = _entries(data, full)
        np.put_along_axis(values[: full * BLOCK].reshape(full, BLOCK), places, sizes.astype(np.float64), axis=1)
        values[full * BLOCK :] = TAIL.unpack(data[(4 + WIDTH) * full :], count - full * BLOCK)
        return values

    def add(self, data: bytes | memoryview, base: Floats) -> Floats:
        full = base.size // BLOCK
        new = base.astype(np.float32, copy=True)
        rows = new[: full * BLOCK].reshape(full, BLOCK)
        places, sizes = _entries(data, full)
        np.put_along_axis(rows, places, np.take_along_axis(rows, places, axis=1) + sizes, axis=1)
        new[full * BLOCK :] = TAIL.add(data[(4 + WIDTH) * full :], new[full * BLOCK :])
        return new

    def square(self, data: bytes | memoryview, count: int) -> float:
        full = count // BLOCK
        _, sizes = _entries(data, full)
        of_tail = TAIL.square(data[(4 + WIDTH) * full :], count - full * BLOCK)
        return float(np.square(sizes, dtype=np.float64).sum()) + of_tail

    def pack_residual(self, error: Floats, data: bytes) -> bytes:
        return TAIL.pack(error)[0]

    def add_residual(self, residual: bytes, values: Floats) -> Floats:
        return np.asarray(values + DECAY * TAIL.add(residual, np.zeros_like(values)))


def _packed_rows(rows: Floats) -> tuple[Floats, NDArray[np.uint8], float]:
    """Levels (R, 2), body (R, WIDTH) and sum of squares of blocks (R, BLOCK), from which what is expressed is taken."""
    sizes = np.abs(rows)
    # The places of the largest, in order. Of values as large as the smallest chosen one the first are taken.
    smallest = np.partition(sizes, BLOCK - CHOSEN, axis=1)[:, BLOCK - CHOSEN, None]
    chosen_here = sizes >= smallest
    for row in np.flatnonzero(chosen_here.sum(axis=1) > CHOSEN):
        ties = np.flatnonzero(sizes[row] == smallest[row])
        chosen_here[row, ties[CHOSEN - int((sizes[row] > smallest[row]).sum()) :]] = False
    places = np.nonzero(chosen_here)[1].reshape(len(rows), CHOSEN)
    # Two levels a block: the means of what lies below and above the mean, as both sides read them (bfloat16).
    values = np.take_along_axis(rows, places, axis=1)
    chosen = np.abs(values)
    larger = chosen > chosen.mean(axis=1, keepdims=True)
    counts = larger.sum(axis=1)
    high = np.where(counts > 0, (chosen * larger).sum(axis=1) / np.maximum(counts, 1), 0)
    low = (chosen * ~larger).sum(axis=1) / np.maximum(CHOSEN - counts, 1)
    levels = _read(_halves(np.stack([low, high], axis=1).astype(np.float32)), len(rows))
    # 14 bits an entry, the highest first.
    negative = values < 0
    entries = places * 4 + larger * 2 + negative
    bits = (entries[:, :, None] >> np.arange(13, -1, -1)) & 1
    body = np.packbits(bits.reshape(len(rows), -1).astype(np.uint8), axis=1)
    expressed = np.where(larger, levels[:, 1:], levels[:, :1]) * np.where(negative, np.float32(-1), np.float32(1))
    np.put_along_axis(rows, places, values - expressed, axis=1)
    return levels, body, float(np.square(expressed, dtype=np.float64).sum())


def _entries(data: bytes | memoryview, full: int) -> tuple[NDArray[np.int64], Floats]:
    """Places (full, 64) and signed sizes (full, 64) of the chosen values.

    ValueError where places are not in rising order: each value may be named once.
    """
    levels = _read(bytes(data[: 4 * full]), full)
    body = np.frombuffer(data, np.uint8, WIDTH * full, offset=4 * full).reshape(full, WIDTH)
    bits = np.unpackbits(body, axis=1).reshape(full, CHOSEN, 14)
    entries = bits @ (1 << np.arange(13, -1, -1))
    places = entries >> 2
    if (np.diff(places, axis=1) <= 0).any():
        raise ValueError("places of chosen values are not in rising order")
    sizes = np.where(entries & 2, levels[:, 1:], levels[:, :1])
    return places, np.where(entries & 1, -sizes, sizes).astype(np.float32)


def _halves(levels: Floats) -> bytes:
    return Bf16().pack(levels.reshape(-1).copy())[0]


def _read(data: bytes, full: int) -> Floats:
    return Bf16().unpack(data, 2 * full).astype(np.float32).reshape(full, 2)
