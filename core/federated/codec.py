"""What may leave a hospital: the difference of a trained encoder to its base, packed small.

Three encodings, one byte string a tensor, little-endian, C order, n values:

    int8   scales (ceil(n / 256), float32), then codes (n, int8): value = code * scale of its block of 256
    bf16   (n, uint16): the upper half of a float32, rounded to nearest even
    fp32   (n, uint32): bits of the trained value XOR bits of the base value: lossless

The lossy encodings feed their error back (Karimireddy et al. 2019, arXiv:1901.09847): what a round could not express
is kept at the site as a residual and added to the next round's difference. On disk it is packed like the difference, so
that the two together hold it twice as finely. Everything here is NumPy and deterministic.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from usfmae.core.errors import PolicyError

Floats = NDArray[np.float32]
Exact = NDArray[np.float64]

ENCODINGS = ("int8", "bf16", "fp32")
BLOCK = 256  # values that share one int8 scale
STRIDE = 256  # blocks worked on at a time: 256 KiB of float32, so that they stay in the processor's cache


@dataclass(frozen=True)
class EncodedTensor:
    """One tensor's packed difference."""

    name: str
    data: bytes
    error: Floats | None  # what the bytes leave out, of the tensor's shape; None for fp32
    norm: float  # L2 norm of what the bytes express


@dataclass(frozen=True)
class EncodedUpdate:
    """A packed difference, what it left out, and the size of what it holds."""

    payload: dict[str, bytes]  # tensor name -> packed bytes
    residual: dict[str, Floats]  # tensor name -> error kept at the site; empty for fp32
    norm: float  # L2 norm of the difference as the aggregator will read it
    content: str  # payload_id of the payload


def blocks(count: int) -> int:
    return -(-count // BLOCK)


def packed_size(count: int, encoding: str) -> int:
    """Bytes of a packed tensor of `count` values. PolicyError for an unknown encoding."""
    if encoding == "int8":
        return 4 * blocks(count) + count
    if encoding in ("bf16", "fp32"):
        return count * (2 if encoding == "bf16" else 4)
    raise PolicyError(f"encoding {encoding!r:.20}", f"is none of {', '.join(ENCODINGS)}", "refused")


class PayloadHash:
    """The content hash a site signs: over every name and its bytes, in the order of the names, one after the other."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, name: str, data: bytes | memoryview) -> None:
        for part in (name.encode(), data):  # as flow.content_id: each part behind its length
            self._digest.update(len(part).to_bytes(8, "big"))
            self._digest.update(part)

    def id(self) -> str:
        return self._digest.hexdigest()


def payload_id(payload: Mapping[str, bytes | memoryview]) -> str:
    """The content hash of a payload in memory."""
    content = PayloadHash()
    for name in sorted(payload):
        content.add(name, payload[name])
    return content.id()


def pack(
    base: Mapping[str, Floats],
    trained: Mapping[str, Floats],
    encoding: str = "int8",
    residual: Mapping[str, Floats] | None = None,
) -> EncodedUpdate:
    """Pack `trained - base`, plus the residual of the round before.

    Both mappings hold the same names and shapes, float32. PolicyError where they do not, or where a value is not
    finite: a site must not send what the aggregator will refuse.
    """
    tensors = list(encode(base, trained, encoding, residual))
    return EncodedUpdate(
        {tensor.name: tensor.data for tensor in tensors},
        {tensor.name: tensor.error for tensor in tensors if tensor.error is not None},
        math.sqrt(sum(tensor.norm**2 for tensor in tensors)),
        payload_id({tensor.name: tensor.data for tensor in tensors}),
    )


def encode(
    base: Mapping[str, Floats],
    trained: Mapping[str, Floats],
    encoding: str,
    residual: Mapping[str, Floats] | None = None,
) -> Iterator[EncodedTensor]:
    """The same one tensor after the other, in the order of names: no more than one need be in memory."""
    if set(base) != set(trained):
        raise PolicyError("update", "trained tensors are not those of the base", "start from the round's encoder")
    for name in sorted(base):
        yield _encode_tensor(name, base[name], trained[name], encoding, (residual or {}).get(name))


def _encode_tensor(
    name: str, base: Floats, trained: Floats, encoding: str, residual: Floats | None = None
) -> EncodedTensor:
    if base.shape != trained.shape or (residual is not None and residual.shape != base.shape):
        raise PolicyError(f"tensor {name!r}", f"has shape {trained.shape}, its base {base.shape}", "refused")
    flat_base = np.ascontiguousarray(base, dtype="<f4").reshape(-1)
    flat = np.ascontiguousarray(trained, dtype="<f4").reshape(-1)
    if not np.isfinite(flat).all():
        raise PolicyError(f"tensor {name!r}", "holds NaN or infinity after training", "lower the learning rate")
    if encoding == "fp32":
        data = (flat.view("<u4") ^ flat_base.view("<u4")).tobytes()
        return EncodedTensor(name, data, None, float(np.linalg.norm(flat.astype(np.float64) - flat_base)))
    wanted = flat - flat_base
    if residual is not None:
        wanted += residual.reshape(-1)
    # What is wanted turns, in place, into what is left: the error.
    data, square = express(wanted, encoding)
    return EncodedTensor(name, data, wanted.reshape(base.shape), math.sqrt(square))


def express(wanted: Floats, encoding: str) -> tuple[bytes, float]:
    """Values (n,) packed, and the sum of squares of what the bytes express, which is subtracted from them in place.

    Lossy encodings only: PolicyError for any other.
    """
    return _pack_int8(wanted) if encoding == "int8" else _pack_bf16(wanted, encoding)


def finer(error: Floats, data: bytes, encoding: str) -> bytes:
    """What `express` left out beside `data`, packed as well: int8 codes of 1/254 of the scales in `data`.

    `error` is worked on in place. What even this leaves out is below 1/64,000 of the largest difference in a block.
    """
    if encoding != "int8":
        return _pack_bf16(error, encoding)[0]
    scales: Floats = np.frombuffer(data, np.float32, blocks(error.size)) / np.float32(254)
    return _pack_int8(error, scales)[0]


def stepped(data: bytes | memoryview, base: Floats, encoding: str) -> Floats:
    """`base` plus a packed difference, flat: multiplied and added in float32, so that every machine gets these bits.

    Lossy encodings only. ValueError where the bytes are not packed_size(base.size, encoding) long.
    """
    old = np.ascontiguousarray(base, "<f4").reshape(-1)
    if len(data) != packed_size(old.size, encoding):
        raise ValueError(f"{len(data)} bytes, expected {packed_size(old.size, encoding)} for {old.size} values")
    if encoding != "int8":
        change: Floats = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
        return old + change
    scales, codes = _split_int8(data, old.size)
    new = np.empty(old.size, np.float32)
    for start in range(0, len(codes), STRIDE):
        where = slice(start * BLOCK, (start + STRIDE) * BLOCK)
        rows = codes[start : start + STRIDE].astype(np.float32)
        rows *= scales[start : start + STRIDE, None]
        np.add(old[where], rows.reshape(-1)[: old[where].size], out=new[where])
    return new


def ranges(count: int, encoding: str, start: int, stop: int) -> list[tuple[int, int]]:
    """Where in a packed tensor of `count` values the bytes of `start..stop` lie; `start` is a multiple of BLOCK.

    Joined, these bytes are the packing of the slice alone.
    """
    if encoding == "int8":
        head = 4 * blocks(count)
        return [(4 * (start // BLOCK), 4 * blocks(stop)), (head + start, head + stop)]
    width = packed_size(1, encoding)
    return [(width * start, width * stop)]


def unpack(data: bytes | memoryview, base: Floats, encoding: str) -> Exact:
    """The difference in a packed tensor, flat, float64; `base` is the tensor it is to.

    ValueError where the bytes are not packed_size(base.size, encoding) long.
    """
    count = base.size
    if len(data) != packed_size(count, encoding):
        raise ValueError(f"{len(data)} bytes, expected {packed_size(count, encoding)} for {count} values")
    if encoding == "int8":
        scales = np.frombuffer(data, "<f4", blocks(count)).astype(np.float64)
        values = np.frombuffer(data, np.int8, count, offset=4 * len(scales)).astype(np.float64)
        rows = values[: count // BLOCK * BLOCK].reshape(-1, BLOCK)
        rows *= scales[: len(rows), None]
        if rows.size < count:  # the last block is short
            values[rows.size :] *= scales[-1]
        return values
    if encoding == "bf16":
        halves = np.frombuffer(data, "<u2", count)
        return (halves.astype("<u4") << 16).view("<f4").astype(np.float64)
    difference: Exact = trained(data, base, encoding) - np.ascontiguousarray(base, "<f4").reshape(-1)
    return difference


def trained(data: bytes | memoryview, base: Floats, encoding: str) -> Exact:
    """The trained values, flat, float64; for fp32 exactly the site's bits."""
    old = np.ascontiguousarray(base, dtype="<f4").reshape(-1)
    if encoding != "fp32":
        values = unpack(data, base, encoding)
        values += old
        return values
    bits = np.frombuffer(data, "<u4", base.size) ^ old.view("<u4")
    return np.asarray(bits.view("<f4"), np.float64)


def block_products(packed: Sequence[bytes], count: int) -> Exact:
    """Inner products (S, S) of int8 differences of `count` values, exact but for the sum over blocks.

    256 products of two codes stay below 2^24, so that float32 holds their sum exactly.
    """
    parts = [_split_int8(data, count) for data in packed]
    codes = np.stack([codes for _, codes in parts], axis=1).astype(np.float32)  # (blocks, S, BLOCK)
    scales = np.stack([scales for scales, _ in parts], axis=1).astype(np.float64)  # (blocks, S)
    products = codes @ codes.transpose(0, 2, 1)
    return np.asarray(np.einsum("bij,bi,bj->ij", products, scales, scales))


def square_norm(data: bytes | memoryview, base: Floats, encoding: str) -> float:
    """Sum of squares of a packed tensor's difference. ValueError where `base` plus it is not finite in float32."""
    with np.errstate(all="ignore"):
        if encoding == "int8":
            scales, codes = _split_int8(data, base.size)
            largest = float(np.abs(base).max(initial=0)) + 128 * float(np.abs(scales).max(initial=0))
            if largest <= np.finfo(np.float32).max:  # false for NaN as well
                exact = np.square(scales, dtype=np.float64)
                return float(exact @ _square_sums(codes))
        values = trained(data, base, encoding)
        if not np.isfinite(values).all() or np.abs(values).max(initial=0) > np.finfo(np.float32).max:
            raise ValueError("not finite")
        values -= base.reshape(-1)
        return float(np.square(values).sum())


def _split_int8(data: bytes | memoryview, count: int) -> tuple[Floats, NDArray[np.int8]]:
    """Scales (blocks,) and codes (blocks, BLOCK), the last block filled up with zeros."""
    head = blocks(count)
    codes = np.frombuffer(data, np.int8, count, offset=4 * head)
    if count % BLOCK:
        codes = np.concatenate([codes, np.zeros(-count % BLOCK, np.int8)])
    return np.frombuffer(data, "<f4", head), codes.reshape(-1, BLOCK)


def _square_sums(codes: NDArray[np.int8]) -> NDArray[np.float64]:
    """Sum of squares in each block; exact, since 256 squares of codes stay below 2^24 in float32."""
    sums = np.empty(len(codes))
    for start in range(0, len(codes), STRIDE):
        rows = codes[start : start + STRIDE].astype(np.float32)
        sums[start : start + STRIDE] = np.einsum("bi,bi->b", rows, rows)
    return sums


def _pack_int8(wanted: Floats, given: Floats | None = None) -> tuple[bytes, float]:
    """Bytes and the sum of squares of what they express, which is subtracted from `wanted` (n,) in place.

    Scales are `given`, and the sum is not wanted, or those of the largest values.
    """
    count, square = wanted.size, 0.0
    scales, codes = np.empty(blocks(count), "<f4"), np.empty((blocks(count), BLOCK), np.int8)
    for start in range(0, len(codes), STRIDE):
        piece = wanted[start * BLOCK : (start + STRIDE) * BLOCK]
        if piece.size % BLOCK:
            rows = np.zeros((blocks(piece.size), BLOCK), np.float32)
            rows.reshape(-1)[: piece.size] = piece
        else:
            rows = piece.reshape(-1, BLOCK).copy()
        if given is None:
            scale = np.maximum(rows.max(axis=1), -rows.min(axis=1)) / np.float32(127)
        else:
            scale = given[start : start + STRIDE]
        rows /= np.where(scale > 0, scale, np.float32(1))[:, None]
        np.clip(np.rint(rows, out=rows), -127, 127, out=rows)
        scales[start : start + STRIDE], codes[start : start + STRIDE] = scale, rows
        if given is None:  # exact: 256 squares of codes stay below 2^24
            square += float(np.square(scale, dtype=np.float64) @ np.einsum("bi,bi->b", rows, rows))
        rows *= scale[:, None]
        piece -= rows.reshape(-1)[: piece.size]
    return scales.tobytes() + codes.reshape(-1)[:count].tobytes(), square


def _pack_bf16(wanted: Floats, encoding: str) -> tuple[bytes, float]:
    """The same in bfloat16."""
    packed_size(0, encoding)  # refuses an unknown encoding
    bits = np.ascontiguousarray(wanted, dtype="<f4").view("<u4")
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    read = (rounded << 16).view("<f4")
    wanted -= read
    return rounded.astype("<u2").tobytes(), float(np.square(read, dtype=np.float64).sum())
