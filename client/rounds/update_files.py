"""The files of an update: packed difference and residual, one tensor in memory at a time.

Torch is not loaded here: whatever trained, its tensors come as NumPy arrays.
"""

from __future__ import annotations

import contextlib
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from usfmae.client import outbox
from usfmae.client.rounds import jobs
from usfmae.client.rounds.jobs import Job
from usfmae.core.federated import codec
from usfmae.core.federated.codec import EncodedTensor
from usfmae.core.federated.encodings import Floats
from usfmae.core.files import rewriting, write_atomic
from usfmae.core.tensors import TensorFile, Writer

RESIDUAL = "residual.safetensors"


@contextlib.contextmanager
def residual_of(before: Job | None, base: TensorFile, encoding: str) -> Iterator[Mapping[str, Floats]]:
    """What the round before could not express, by name; empty without one, or where its encoding was another."""
    path = before.place / RESIDUAL if before else None
    if path is None or not path.exists() or not is_whole(path):
        yield {}
        return
    with TensorFile(path) as file:
        same = encoding != "fp32" and file.shapes == _sizes(base, codec.residual_encoding(encoding))
        yield _Residual(file, base.shapes, encoding) if same else {}


def write(
    work: Job, before: Job | None, base: TensorFile, payload: Iterable[EncodedTensor], encoding: str
) -> dict[str, Any]:
    """Write the update of `work` and what it could not express; returns what the result says of them.

    `payload` comes in the order of names; the residual is written over that of a round whose residual is not read any more,
    never over that of `before`. ResourceError where the disk is full.
    """
    sizes = _sizes(base, encoding)
    content, square = codec.PayloadHash(), 0.0
    with contextlib.ExitStack() as stack:
        out = _writer(stack, work.place / outbox.UPDATE, sizes, {"shapes": json.dumps(base.shapes)})
        spent = jobs.spent(work.site, before.request["campaign"], RESIDUAL, before.place / RESIDUAL) if before else None
        left = None
        if encoding != "fp32":
            left = _writer(stack, work.place / RESIDUAL, _sizes(base, codec.residual_encoding(encoding)), {}, spent)
        for tensor in payload:
            content.add(tensor.name, tensor.data)
            square += tensor.norm**2
            out.add(tensor.name, tensor.data)
            if left is not None and tensor.error is not None:
                left.add(tensor.name, codec.pack_residual(tensor.error.reshape(-1), tensor.data, encoding))
        for writer in (out, left):
            if writer is not None:
                writer.finish()
    if left is not None:
        seal(work.place / RESIDUAL)
    total = sum(size for (size,) in sizes.values())
    return {"content": content.id(), "encoding": encoding, "tensors": len(sizes), "bytes": total, "norm": square**0.5}


def seal(path: Path) -> None:
    """Write a checksum next to a file that a later round starts from. ResourceError where the disk is full."""
    write_atomic(_seal(path), str(_checksum(path)).encode())


def is_whole(path: Path) -> bool:
    """Whether a file is what was sealed; one without a seal, as it came over the wire, was checked when it came."""
    try:
        return not _seal(path).exists() or _seal(path).read_text() == str(_checksum(path))
    except (OSError, UnicodeDecodeError):
        return False


def is_sealed(path: Path) -> bool:
    return _seal(path).exists()


def _seal(path: Path) -> Path:
    return path.with_suffix(".crc32")


def _checksum(path: Path) -> int:
    """CRC-32: finds what a disk does to a file; whoever can write here could write anything."""
    total = 0
    with path.open("rb") as file:
        while piece := file.read(2**20):
            total = zlib.crc32(piece, total)
    return total


class _Residual(Mapping[str, Floats]):
    """The residual in a file, each tensor unpacked when it is asked for."""

    def __init__(self, file: TensorFile, shapes: Mapping[str, tuple[int, ...]], encoding: str) -> None:
        self._file, self._shapes, self._encoding = file, shapes, encoding

    def __getitem__(self, name: str) -> Floats:
        zeros = np.zeros(self._shapes[name], np.float32)
        return codec.add_residual(self._file.raw(name), zeros.reshape(-1), self._encoding).reshape(zeros.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _sizes(base: TensorFile, encoding: str) -> dict[str, tuple[int, ...]]:
    """Packed bytes of each tensor."""
    return {name: (codec.packed_size(math.prod(shape), encoding),) for name, shape in base.shapes.items()}


def _writer(
    stack: contextlib.ExitStack, path: Path, sizes: Any, metadata: dict[str, str], spent: Path | None = None
) -> Writer:
    return Writer(stack.enter_context(rewriting(path, spent)), sizes, metadata, "U8", hashed=False)
