"""int8 in blocks of 256: scales (ceil(n / 256), float32), then codes (n, int8); value = code * scale of its block.

A residual is packed finer: int8 codes of 1/254 of the scales, so that the two together hold a difference twice as finely.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from usfmae.core.federated.encodings.base import Exact, Floats

BLOCK = 256  # values that share one scale
STRIDE = 256  # blocks worked on at a time: 256 KiB of float32, so that they stay in the processor's cache


class Int8:
    block = BLOCK
    residual = "int8"
    decay = 1.0

    def size(self, count: int) -> int:
        return self.head(count) + count

    def head(self, count: int) -> int:
        return 4 * blocks(count)

    def pack(self, values: Floats) -> tuple[bytes, float]:
        return _pack(values)

    def unpack(self, data: bytes | memoryview, count: int) -> Exact:
        scales = np.frombuffer(data, "<f4", blocks(count)).astype(np.float64)
        values = np.frombuffer(data, np.int8, count, offset=4 * len(scales)).astype(np.float64)
        rows = values[: count // BLOCK * BLOCK].reshape(-1, BLOCK)
        rows *= scales[: len(rows), None]
        if rows.size < count:  # the last block is short
            values[rows.size :] *= scales[-1]
        return values

    def add(self, data: bytes | memoryview, base: Floats) -> Floats:
        scales, codes = split(data, base.size)
        new = np.empty(base.size, np.float32)
        for start in range(0, len(codes), STRIDE):
            where = slice(start * BLOCK, (start + STRIDE) * BLOCK)
            rows = codes[start : start + STRIDE].astype(np.float32)
            rows *= scales[start : start + STRIDE, None]
            np.add(base[where], rows.reshape(-1)[: base[where].size], out=new[where])
        return new

    def square(self, data: bytes | memoryview, count: int) -> float:
        scales, codes = split(data, count)
        return float(np.square(scales, dtype=np.float64) @ _square_sums(codes))

    def largest(self, data: bytes | memoryview, count: int) -> float:
        return 128 * float(np.abs(np.frombuffer(data, "<f4", blocks(count))).max(initial=0))

    def pack_residual(self, error: Floats, data: bytes) -> bytes:
        """What even this leaves out is below 1/64,000 of the largest difference in a block."""
        scales: Floats = np.frombuffer(data, np.float32, blocks(error.size)) / np.float32(254)
        return _pack(error, scales)[0]

    def add_residual(self, residual: bytes, values: Floats) -> Floats:
        return self.add_in_place(residual, values)

    def pack_alone(self, values: Floats) -> bytes:
        """The bytes of `pack`, of which nobody wants to know what they express; `values` stay as they are."""
        scales, codes = np.empty(blocks(values.size), "<f4"), np.empty((blocks(values.size), BLOCK), np.int8)
        for start in range(0, len(codes), STRIDE):
            rows = _rows(values[start * BLOCK : (start + STRIDE) * BLOCK])
            scale = _largest_is_127(rows)
            scales[start : start + STRIDE], codes[start : start + STRIDE] = scale, _rounded(rows, scale)
        return scales.tobytes() + codes.reshape(-1)[: values.size].tobytes()

    def add_in_place(self, data: bytes | memoryview, values: Floats, share: float = 1.0) -> Floats:
        """`values` (n,), to which this share of what the bytes express was added."""
        scales, codes = split(data, values.size)
        if share != 1:
            scales = scales * np.float32(share)
        for start in range(0, len(codes), STRIDE):
            where = slice(start * BLOCK, (start + STRIDE) * BLOCK)
            rows = codes[start : start + STRIDE].astype(np.float32)
            rows *= scales[start : start + STRIDE, None]
            values[where] += rows.reshape(-1)[: values[where].size]
        return values


def blocks(count: int) -> int:
    return -(-count // BLOCK)


def products(packed: Sequence[bytes], count: int) -> Exact:
    """Inner products (S, S) of int8 differences of `count` values, exact but for the sum over blocks.

    256 products of two codes stay below 2^24, so that float32 holds their sum exactly.
    """
    parts = [split(data, count) for data in packed]
    codes = np.stack([codes for _, codes in parts], axis=1).astype(np.float32)  # (blocks, S, BLOCK)
    scales = np.stack([scales for scales, _ in parts], axis=1).astype(np.float64)  # (blocks, S)
    sums = codes @ codes.transpose(0, 2, 1)
    return np.asarray(np.einsum("bij,bi,bj->ij", sums, scales, scales))


def split(data: bytes | memoryview, count: int) -> tuple[Floats, NDArray[np.int8]]:
    """Scales (blocks,) and codes (blocks, BLOCK), the last block filled up with zeros."""
    head = blocks(count)
    codes = np.frombuffer(data, np.int8, count, offset=4 * head)
    if count % BLOCK:
        codes = np.concatenate([codes, np.zeros(-count % BLOCK, np.int8)])
    return np.frombuffer(data, "<f4", head), codes.reshape(-1, BLOCK)


def _square_sums(codes: NDArray[np.int8]) -> Exact:
    """Sum of squares in each block; exact, since 256 squares of codes stay below 2^24 in float32."""
    sums = np.empty(len(codes))
    for start in range(0, len(codes), STRIDE):
        rows = codes[start : start + STRIDE].astype(np.float32)
        sums[start : start + STRIDE] = np.einsum("bi,bi->b", rows, rows)
    return sums


def _pack(values: Floats, scales_given: Floats | None = None) -> tuple[bytes, float]:
    """Bytes and the sum of squares of what they express, which is subtracted from `wanted` (n,) in place.

    Scales are `given`, and the sum is not wanted, or those of the largest values.
    """
    count, square = values.size, 0.0
    scales, codes = np.empty(blocks(count), "<f4"), np.empty((blocks(count), BLOCK), np.int8)
    for start in range(0, len(codes), STRIDE):
        piece = values[start * BLOCK : (start + STRIDE) * BLOCK]
        rows = _rows(piece)
        scale = _largest_is_127(rows) if scales_given is None else scales_given[start : start + STRIDE]
        scales[start : start + STRIDE], codes[start : start + STRIDE] = scale, _rounded(rows, scale)
        if scales_given is None:  # exact: 256 squares of codes stay below 2^24
            square += float(np.square(scale, dtype=np.float64) @ np.einsum("bi,bi->b", rows, rows))
        # What is expressed goes off; the error remains in place.
        rows *= scale[:, None]
        piece -= rows.reshape(-1)[: piece.size]
    return scales.tobytes() + codes.reshape(-1)[:count].tobytes(), square


def _rows(values: Floats) -> Floats:
    """A copy in whole blocks (blocks, BLOCK), the last one filled up with zeros."""
    if values.size % BLOCK == 0:
        return values.reshape(-1, BLOCK).copy()
    rows = np.zeros((blocks(values.size), BLOCK), np.float32)
    rows.reshape(-1)[: values.size] = values
    return rows


def _largest_is_127(rows: Floats) -> Floats:
    """One scale a block (blocks,): its largest value is code 127."""
    return np.asarray(np.maximum(rows.max(axis=1), -rows.min(axis=1)) / np.float32(127))


def _rounded(rows: Floats, scale: Floats) -> Floats:
    """Codes of `rows` (blocks, BLOCK), worked out in place."""
    rows /= np.where(scale > 0, scale, np.float32(1))[:, None]
    return np.clip(np.rint(rows, out=rows), -127, 127, out=rows)
