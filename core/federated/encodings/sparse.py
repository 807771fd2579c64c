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
GROUPS = 256  # of 16 values each, whose largest bound the block's chosen ones from below
FEW = 256  # candidates of a block that are compared side by side; of more, which equal values make, one block at a time
DECAY = 0.95
TAIL = Int8()


class Sparse:
    block = BLOCK
    residual = "int8"
    decay = DECAY

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
        values[places] = sizes
        values[full * BLOCK :] = TAIL.unpack(data[(4 + WIDTH) * full :], count - full * BLOCK)
        return values

    def add(self, data: bytes | memoryview, base: Floats) -> Floats:
        full = base.size // BLOCK
        new = base.astype(np.float32, copy=True)
        places, sizes = _entries(data, full)
        new[places] += sizes  # no place is named twice
        new[full * BLOCK :] = TAIL.add(data[(4 + WIDTH) * full :], new[full * BLOCK :])
        return new

    def square(self, data: bytes | memoryview, count: int) -> float:
        full = count // BLOCK
        _, sizes = _entries(data, full)
        of_tail = TAIL.square(data[(4 + WIDTH) * full :], count - full * BLOCK)
        return float(np.square(sizes, dtype=np.float64).sum()) + of_tail

    def largest(self, data: bytes | memoryview, count: int) -> float:
        full = count // BLOCK
        levels = float(np.abs(_read(data, full)).max(initial=0))
        return levels + TAIL.largest(data[(4 + WIDTH) * full :], count - full * BLOCK)  # a sum keeps NaN, max may not

    def pack_residual(self, error: Floats, data: bytes) -> bytes:
        return TAIL.pack_alone(error)

    def add_residual(self, residual: bytes, values: Floats) -> Floats:
        return TAIL.add_in_place(residual, values, self.decay)


def _packed_rows(rows: Floats) -> tuple[Floats, NDArray[np.uint8], float]:
    """Levels (R, 2), body (R, WIDTH) and sum of squares of blocks (R, BLOCK), from which what is expressed is taken."""
    places = _largest_places(np.abs(rows))
    # Two levels a block: the means of what lies below and above the mean, as both sides read them (bfloat16).
    values = np.take_along_axis(rows, places, axis=1)
    chosen = np.abs(values)
    larger = chosen > chosen.mean(axis=1, keepdims=True)
    counts = larger.sum(axis=1)
    high = (chosen * larger).sum(axis=1) / np.maximum(counts, 1)
    low = (chosen * ~larger).sum(axis=1) / np.maximum(CHOSEN - counts, 1)
    levels = _read(_halves(np.stack([low, high], axis=1).astype(np.float32)), len(rows))
    negative = values < 0
    expressed = np.where(larger, levels[:, 1:], levels[:, :1])
    np.negative(expressed, out=expressed, where=negative)
    np.put_along_axis(rows, places, values - expressed, axis=1)
    body = _to_bits(places * 4 + larger * 2 + negative)
    return levels, body, float(np.square(expressed, dtype=np.float64).sum())


def _largest_places(sizes: Floats) -> NDArray[np.int64]:
    """Places (R, CHOSEN), in order, of the largest of each block (R, BLOCK); of equal values the first are taken."""
    # As many groups as values are wanted have a largest value of at least `bound`, so at least as many values have it.
    tops = sizes.reshape(len(sizes), -1, GROUPS).max(axis=1)
    bound = np.partition(tops, GROUPS - CHOSEN, axis=1)[:, GROUPS - CHOSEN, None]
    row, place = np.divmod(np.flatnonzero(sizes >= bound), BLOCK)
    counts = np.bincount(row, minlength=len(sizes))
    result = np.empty((len(sizes), CHOSEN), np.int64)
    few = counts <= FEW
    if not few.all():  # many equal values, as in a tensor that did not change: a block at a time
        for one in np.flatnonzero(~few):
            result[one] = np.sort(np.argsort(-sizes[one], kind="stable")[:CHOSEN])
    # The candidates of a block side by side, filled up with what is smaller than any; the largest of them stay.
    within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    here = few[row]
    candidates = np.full((len(sizes), min(int(counts.max()), FEW)), -1, np.float32)
    candidates[row[here], within[here]] = sizes[row[here], place[here]]
    width = candidates.shape[1]
    smallest = np.partition(candidates, width - CHOSEN, axis=1)[:, width - CHOSEN, None]
    stays = candidates >= smallest
    for one in np.flatnonzero((stays.sum(axis=1) > CHOSEN) & few):
        ties = np.flatnonzero(candidates[one] == smallest[one])
        stays[one, ties[CHOSEN - int((candidates[one] > smallest[one]).sum()) :]] = False
    chosen = here & stays[row, np.minimum(within, width - 1)]
    result[few] = place[chosen].reshape(-1, CHOSEN)
    return result


def _to_bits(entries: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Entries (R, CHOSEN) of 14 bits as bytes (R, WIDTH), the highest bit first: four of them are 7 bytes."""
    four = entries.reshape(-1, CHOSEN // 4, 4)
    words = (four[..., 0] << 42) | (four[..., 1] << 28) | (four[..., 2] << 14) | four[..., 3]
    return words.astype(">u8")[..., None].view(np.uint8)[..., 1:].reshape(len(entries), WIDTH)


def _of_bits(body: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Entries (R, CHOSEN) of bytes (R, WIDTH)."""
    wide = np.zeros((len(body), CHOSEN // 4, 8), np.uint8)
    wide[..., 1:] = body.reshape(-1, CHOSEN // 4, 7)
    words = wide.view(">u8").astype(np.int64)  # (R, CHOSEN / 4, 1)
    return np.asarray((words >> np.array([42, 28, 14, 0])) & 0x3FFF, np.int64).reshape(len(body), CHOSEN)


def _entries(data: bytes | memoryview, full: int) -> tuple[NDArray[np.int64], Floats]:
    """Places in the tensor and signed sizes of the chosen values, each (full * 64,).

    ValueError where places of a block are not in rising order: each value may be named once.
    """
    levels = _read(data, full)
    entries = _of_bits(np.frombuffer(data, np.uint8, WIDTH * full, offset=4 * full).reshape(full, WIDTH))
    places = entries >> 2
    if (np.diff(places, axis=1) <= 0).any():
        raise ValueError("places of chosen values are not in rising order")
    sizes = np.where(entries & 2, levels[:, 1:], levels[:, :1])
    np.negative(sizes, out=sizes, where=(entries & 1).astype(bool))
    return (places + BLOCK * np.arange(full)[:, None]).reshape(-1), sizes.reshape(-1)


def _halves(levels: Floats) -> bytes:
    return Bf16().pack(levels.reshape(-1).copy())[0]


def _read(data: bytes | memoryview, full: int) -> Floats:
    return Bf16().add(data, np.zeros(2 * full, np.float32)).reshape(full, 2)
