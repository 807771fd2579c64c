"""What may leave a hospital: the difference of a trained encoder to its base, packed small.

Three encodings, one byte string a tensor, little-endian, C order, n values:

    int8   scales (ceil(n / 256), float32), then codes (n, int8): value = code * scale of its block of 256
    bf16   (n, uint16): the upper half of a float32, rounded to nearest even
    fp32   (n, uint32): bits of the trained value XOR bits of the base value: lossless

The lossy encodings feed their error back (Karimireddy et al. 2019, arXiv:1901.09847): what a round could not express
is kept at the site as a residual and added to the next round's difference. Everything here is NumPy and deterministic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from usfmae.core.errors import PolicyError

Floats = NDArray[np.float32]
Exact = NDArray[np.float64]

ENCODINGS = ("int8", "bf16", "fp32")
BLOCK = 256  # values that share one int8 scale


@dataclass(frozen=True)
class Packed:
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
) -> Packed:
    """Pack `trained - base`, plus the residual of the round before.

    Both mappings hold the same names and shapes, float32. PolicyError where they do not, or where a value is not
    finite: a site must not send what the aggregator will refuse.
    """
    if set(base) != set(trained):
        raise PolicyError("update", "trained tensors are not those of the base", "start from the round's encoder")
    payload, kept, square = {}, {}, 0.0
    for name in sorted(base):
        data, error, norm = pack_tensor(name, base[name], trained[name], encoding, (residual or {}).get(name))
        payload[name] = data
        square += norm**2
        if error is not None:
            kept[name] = error
    return Packed(payload, kept, float(np.sqrt(square)), payload_id(payload))


def pack_tensor(
    name: str, base: Floats, trained: Floats, encoding: str, residual: Floats | None = None
) -> tuple[bytes, Floats | None, float]:
    """One tensor's bytes, the error they leave (None if lossless) and their L2 norm; for packing with little memory."""
    if base.shape != trained.shape or (residual is not None and residual.shape != base.shape):
        raise PolicyError(f"tensor {name!r}", f"has shape {trained.shape}, its base {base.shape}", "refused")
    flat_base = np.ascontiguousarray(base, dtype="<f4").reshape(-1)
    flat = np.ascontiguousarray(trained, dtype="<f4").reshape(-1)
    if not np.isfinite(flat).all():
        raise PolicyError(f"tensor {name!r}", "holds NaN or infinity after training", "lower the learning rate")
    if encoding == "fp32":
        data = (flat.view("<u4") ^ flat_base.view("<u4")).tobytes()
        return data, None, float(np.linalg.norm(flat.astype(np.float64) - flat_base))
    wanted = flat - flat_base
    if residual is not None:
        wanted = wanted + residual.reshape(-1)
    if encoding == "int8":
        data, read, norm = _pack_int8(wanted)
    else:
        data = _pack_bf16(wanted, encoding)
        exact = unpack(data, flat_base, encoding)
        read, norm = exact.astype(np.float32), float(np.linalg.norm(exact))
    return data, (wanted - read).reshape(base.shape), norm


def unpack(data: bytes | memoryview, base: Floats, encoding: str, start: int = 0, stop: int | None = None) -> Exact:
    """Values `start..stop` of a packed tensor's difference, flat, float64. `base` is the whole base tensor.

    `start` is a multiple of BLOCK. ValueError where the bytes are not packed_size(base.size, encoding) long.
    """
    count = base.size
    stop = count if stop is None else min(stop, count)
    if len(data) != packed_size(count, encoding):
        raise ValueError(f"{len(data)} bytes, expected {packed_size(count, encoding)} for {count} values")
    if encoding == "int8":
        head = blocks(count)
        scales = np.frombuffer(data, "<f4", head)[start // BLOCK : blocks(stop)].astype(np.float64)
        values = np.frombuffer(data, np.int8, stop - start, offset=4 * head + start).astype(np.float64)
        rows = values[: values.size // BLOCK * BLOCK].reshape(-1, BLOCK)
        rows *= scales[: len(rows), None]
        if rows.size < values.size:  # the last block is short
            values[rows.size :] *= scales[-1]
        return values
    if encoding == "bf16":
        halves = np.frombuffer(data, "<u2", stop - start, offset=2 * start)
        return (halves.astype("<u4") << 16).view("<f4").astype(np.float64)
    return trained(data, base, encoding, start, stop) - np.ascontiguousarray(base, "<f4").reshape(-1)[start:stop]


def trained(data: bytes | memoryview, base: Floats, encoding: str, start: int = 0, stop: int | None = None) -> Exact:
    """Values `start..stop` of the trained tensor, flat, float64; for fp32 exactly the site's bits."""
    stop = base.size if stop is None else min(stop, base.size)
    old = np.ascontiguousarray(base, dtype="<f4").reshape(-1)[start:stop]
    if encoding != "fp32":
        return unpack(data, base, encoding, start, stop) + old
    bits = np.frombuffer(data, "<u4", stop - start, offset=4 * start) ^ old.view("<u4")
    return bits.view("<f4").astype(np.float64)


def _pack_int8(wanted: Floats) -> tuple[bytes, Floats, float]:
    """Bytes, what they express (n,), and its L2 norm: exact, since 256 squares of codes add up exactly in float32."""
    rows = np.zeros((blocks(wanted.size), BLOCK), np.float32)
    rows.reshape(-1)[: wanted.size] = wanted
    scales = (np.maximum(rows.max(axis=1), -rows.min(axis=1)) / np.float32(127)).astype("<f4")
    rows /= np.where(scales > 0, scales, np.float32(1))[:, None]
    np.clip(np.rint(rows, out=rows), -127, 127, out=rows)
    codes = rows.astype(np.int8).reshape(-1)[: wanted.size]
    square = float(np.square(scales, dtype=np.float64) @ np.einsum("bi,bi->b", rows, rows))
    rows *= scales[:, None]
    return scales.tobytes() + codes.tobytes(), rows.reshape(-1)[: wanted.size], square**0.5


def _pack_bf16(wanted: Floats, encoding: str) -> bytes:
    packed_size(0, encoding)  # refuses an unknown encoding
    bits = np.ascontiguousarray(wanted, dtype="<f4").view("<u4")
    rounded = bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))
    return (rounded >> 16).astype("<u2").tobytes()
