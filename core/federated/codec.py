"""What may leave a hospital: the difference of a trained encoder to its base, packed small.

One byte string a tensor, little-endian, C order, n values. The lossy encodings (int8, int4, bf16, sparse, and for
sealed rounds shared and part) stand in `encodings/`, a file each; beside them

    fp32   (n, uint32): bits of the trained value XOR bits of the base value: lossless

The lossy encodings feed their error back (Karimireddy et al. 2019, arXiv:1901.09847): what a round could not express
is kept at the site as a residual and added to the next round's difference. Everything here is NumPy and deterministic.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from usfmae.core.errors import PolicyError
from usfmae.core.federated import encodings
from usfmae.core.federated.encodings import Encoding, Exact, Floats, int8, part, shared
from usfmae.core.tensors import square_sum

ENCODINGS = ("int8", "int4", "sparse", "bf16", "fp32")


def lossy(name: str) -> Encoding:
    """The encoding of this name. PolicyError for fp32 and for what is none."""
    whole, sign, turn = name.partition(part.SIGN)
    encoding = encodings.ENCODINGS.get(whole) or shared.parsed(whole) or shared.parsed_sum(whole)
    number = part.turn(turn)
    if encoding and sign and number is not None and encoding.block in (1, int8.BLOCK):
        return part.PartInTurn(encoding, number)
    if encoding is None or sign:
        raise PolicyError(f"encoding {name!r:.20}", f"is none of {', '.join(ENCODINGS[:-1])}", "refused")
    return encoding


def kind_of(name: str) -> str:
    """The encoding's kind: its name without the unit and the turn that a sealed round gives it."""
    return name.partition(":")[0]


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


def packed_size(count: int, encoding: str) -> int:
    """Bytes of a packed tensor of `count` values. PolicyError for an unknown encoding."""
    return 4 * count if encoding == "fp32" else lossy(encoding).size(count)


def block(encoding: str) -> int:
    """A stretch of a packed tensor begins at a multiple of so many values."""
    return 1 if encoding == "fp32" else lossy(encoding).block


class PayloadHash:
    """The content hash a site signs: over every name and its bytes, in the order of the names, one after the other."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, name: str, data: bytes | memoryview) -> None:
        for piece in (name.encode(), data):  # as types.content_id: each piece behind its length
            self._digest.update(len(piece).to_bytes(8, "big"))
            self._digest.update(piece)

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
    bound: float = 0.0,
) -> Iterator[EncodedTensor]:
    """The same one tensor after the other, in the order of names: no more than one need be in memory.

    A difference, with its residual, that is longer than `bound` (L2, 0 for none) is cut to it; what is cut off is lost.
    Where a part of the values is sent, that part alone is measured and cut.
    """
    if set(base) != set(trained):
        raise PolicyError("update", "trained tensors are not those of the base", "start from the round's encoder")
    left = residual or {}
    share = _share_within(bound, base, trained, left, encoding) if bound else 1.0
    for name in sorted(base):
        yield _encode_tensor(name, base[name], trained[name], encoding, left.get(name), share)


def _share_within(
    bound: float,
    base: Mapping[str, Floats],
    trained: Mapping[str, Floats],
    residual: Mapping[str, Floats],
    encoding: str,
) -> float:
    """What a difference is multiplied by so that it is no longer than `bound`."""
    square = 0.0
    for name in sorted(base):
        difference = np.asarray(trained[name], np.float32) - base[name]
        if name in residual:
            difference += residual[name]
        square += sum(square_sum(values) for values in _sent(difference.reshape(-1), encoding))
    return min(1.0, bound / math.sqrt(square)) if square > 0 else 1.0  # NaN is found where it is packed


def _encode_tensor(
    name: str,
    base: Floats,
    trained: Floats,
    encoding: str,
    residual: Floats | None = None,
    share: float = 1.0,
) -> EncodedTensor:
    if base.shape != trained.shape or (residual is not None and residual.shape != base.shape):
        raise PolicyError(f"tensor {name!r}", f"has shape {trained.shape}, its base {base.shape}", "refused")
    # Both as flat float32; what training has ruined does not leave.
    flat_base = np.ascontiguousarray(base, dtype="<f4").reshape(-1)
    flat = np.ascontiguousarray(trained, dtype="<f4").reshape(-1)

    # Lossless: the bits that differ. There is no error to feed back.
    if encoding == "fp32":
        _check_finite(name, flat)
        data = (flat.view("<u4") ^ flat_base.view("<u4")).tobytes()
        return EncodedTensor(name, data, None, float(np.linalg.norm(flat.astype(np.float64) - flat_base)))

    # Lossy: the difference and what the round before left out; packing turns it, in place, into what is left out now.
    with np.errstate(over="ignore", invalid="ignore"):
        difference = flat - flat_base
        if residual is not None:
            difference += residual.reshape(-1)
    _check_finite(name, difference)
    if share < 1:
        for values in _sent(difference, encoding):
            values *= np.float32(share)
    data, square = express(difference, encoding)
    return EncodedTensor(name, data, difference.reshape(base.shape), math.sqrt(square))


def _sent(difference: Floats, encoding: str) -> Sequence[Floats]:
    """Those values of a difference (n,), in place, that this encoding sends in its round."""
    lossy_encoding = lossy(encoding)
    return lossy_encoding.views(difference) if isinstance(lossy_encoding, part.PartInTurn) else [difference]


def _check_finite(name: str, values: Floats) -> None:
    if not np.isfinite(values).all():
        raise PolicyError(f"tensor {name!r}", "holds NaN or infinity after training", "lower the learning rate")


def express(values: Floats, encoding: str) -> tuple[bytes, float]:
    """Values (n,) packed, and the sum of squares of what the bytes express, which is subtracted from them in place.

    Lossy encodings only: PolicyError for any other.
    """
    return lossy(encoding).pack(values)


def residual_encoding(encoding: str) -> str:
    """The encoding in whose form a residual lies on disk."""
    return lossy(encoding).residual


def decay(encoding: str) -> float:
    """Share of what a packing left out that is added to the next difference."""
    return lossy(encoding).decay


def pack_residual(error: Floats, data: bytes, encoding: str) -> bytes:
    """What `express` left out beside `data`, packed for the disk. `error` is worked on in place."""
    return lossy(encoding).pack_residual(error, data)


def add_residual(residual: bytes, values: Floats, encoding: str) -> Floats:
    """`values` (n,), worked on in place, plus what an earlier packing left out.

    ValueError where it is another tensor's residual.
    """
    _check_length(residual, values.size, residual_encoding(encoding))
    return lossy(encoding).add_residual(residual, values)


def stepped(data: bytes | memoryview, base: Floats, encoding: str) -> Floats:
    """`base` plus a packed difference, flat: multiplied and added in float32, so that every machine gets these bits.

    Lossy encodings only. ValueError where the bytes are not packed_size(base.size, encoding) long.
    """
    old = np.ascontiguousarray(base, "<f4").reshape(-1)
    _check_length(data, old.size, encoding)
    return lossy(encoding).add(data, old)


def head_size(count: int, encoding: str) -> int:
    """Bytes of a packed tensor before its body; stretches are cut out of both (see `ranges`)."""
    return 0 if encoding == "fp32" else lossy(encoding).head(count)


def ranges(count: int, encoding: str, start: int, stop: int) -> list[tuple[int, int]]:
    """Where in a packed tensor of `count` values the bytes of `start..stop` lie; `start` is a multiple of `block`.

    Joined, these bytes are the packing of the slice alone.
    """
    head = head_size(count, encoding)
    before, until = head_size(start, encoding), head_size(stop, encoding)
    body = [head + packed_size(n, encoding) - head_size(n, encoding) for n in (start, stop)]
    return [(before, until), (body[0], body[1])] if head else [(body[0], body[1])]


def unpack(data: bytes | memoryview, base: Floats, encoding: str) -> Exact:
    """The difference in a packed tensor, flat, float64; `base` is the tensor it is to.

    ValueError where the bytes are not packed_size(base.size, encoding) long.
    """
    _check_length(data, base.size, encoding)
    if encoding != "fp32":
        return lossy(encoding).unpack(data, base.size)
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


def products(packed: Sequence[bytes], base: Floats, encoding: str) -> Exact:
    """Inner products (S, S) of packed differences to `base` (n,)."""
    if encoding == "int8":
        return int8.products(packed, base.size)
    rows = np.stack([unpack(data, base, encoding) for data in packed])
    return np.asarray(rows @ rows.T)


def square_norm(data: bytes | memoryview, base: Floats, encoding: str) -> float:
    """Sum of squares of a packed tensor's difference. ValueError where `base` plus it is not finite in float32."""
    _check_length(data, base.size, encoding)
    with np.errstate(all="ignore"):
        if encoding != "fp32":
            # Where no value can overflow, nothing needs to be unpacked.
            largest = float(np.abs(base).max(initial=0)) + lossy(encoding).largest(data, base.size)
            if largest <= np.finfo(np.float32).max:  # false for NaN as well
                return lossy(encoding).square(data, base.size)
        values = trained(data, base, encoding)
        if not np.isfinite(values).all() or np.abs(values).max(initial=0) > np.finfo(np.float32).max:
            raise ValueError("not finite")
        values -= base.reshape(-1)
        return float(np.square(values).sum())


def _check_length(data: bytes | memoryview, count: int, encoding: str) -> None:
    if len(data) != packed_size(count, encoding):
        raise ValueError(f"{len(data)} bytes, expected {packed_size(count, encoding)} for {count} values")
