"""The way down: a round's encoder is its base plus one packed step, which is all that a site with the base needs.

What the merge changes is packed as the sites' updates are, and the encoder that is committed is the base plus what the
packing expresses: aggregator and sites compute the same bits. What a step leaves out stays here and is added to the
next round's change, as the sites do with theirs (Tang et al. 2019, DoubleSqueeze, arXiv:1905.05957).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from usfmae.core.federated import codec
from usfmae.core.federated.encodings import Exact, Floats
from usfmae.core.files import rewriting


@dataclass(frozen=True)
class StepFiles:
    """Files of one round's step: itself, what it leaves out, and what the step before left out (None without one)."""

    step: Path  # packed tensors one after the other, in the order of names
    left: Path
    before: Path | None
    spent: tuple[Path, Path]  # step and left of two rounds ago: written over
    encoding: str = "int8"  # how both are packed


@dataclass(frozen=True)
class Stepped:
    """A piece of the next encoder (n,), the packed step that leads to it, and what that leaves out, packed finer."""

    values: Floats
    packed: bytes
    left: bytes


def stepped(target: Exact, base: Floats, left: bytes, encoding: str) -> Stepped:
    """The encoder nearest to `target` (n,) that a packed step from `base` reaches; `left` by the last one, or empty."""
    # What is to change, with what the step before left out.
    change = (target - base).astype(np.float32)
    if left:
        change = codec.add_residual(left, change, encoding)

    # Packed; the encoder is what the packed step makes of the base, at the sites and here.
    packed, _ = codec.express(change, encoding)  # of the change, what the step leaves out remains
    return Stepped(codec.stepped(packed, base, encoding), packed, codec.pack_residual(change, packed, encoding))


class DownlinkWriter:
    """A tensor after the other, packed, as its pieces come: scales of all pieces first, then the codes."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file, self._encoding = file, encoding
        self._heads: list[bytes] = []
        self._bodies: list[bytes] = []

    def write(self, piece: bytes, count: int) -> None:
        """`count` values, packed."""
        head = codec.head_size(count, self._encoding)
        self._heads.append(piece[:head])
        self._bodies.append(piece[head:])

    def end(self) -> None:
        """The tensor is whole."""
        self._file.writelines([*self._heads, *self._bodies])
        self._heads, self._bodies = [], []


class Out:
    """A step and its rest as they are written: tensor by tensor, piece by piece, in the order of names."""

    def __init__(self, step: BinaryIO, left: BinaryIO, before: BinaryIO | None, encoding: str) -> None:
        self._residual = codec.residual_encoding(encoding)
        self._files = DownlinkWriter(step, encoding), DownlinkWriter(left, self._residual)
        self._before, self._at = before, 0

    def before(self, count: int) -> Callable[[slice], bytes]:
        """What the step before left out of the next tensor of `count` values: reads a piece of it, packed."""
        file, start = self._before, self._at
        self._at += codec.packed_size(count, self._residual)

        def read(where: slice) -> bytes:
            if file is None:
                return b""
            parts = codec.ranges(count, self._residual, where.start, where.stop)
            return b"".join(os.pread(file.fileno(), stop - first, start + first) for first, stop in parts)

        return read

    def write(self, piece: Stepped) -> None:
        for file, packed in zip(self._files, (piece.packed, piece.left), strict=True):
            file.write(packed, piece.values.size)

    def end(self) -> None:
        """The tensor is whole."""
        for file in self._files:
            file.end()


@contextmanager
def writing(files: StepFiles, sizes: Iterable[int]) -> Iterator[Out]:
    """Both files appear by rename when the block ends well. ResourceError where the disk is full.

    `sizes`: values of each tensor. What was left out before in another encoding is left out for good.
    """
    whole = sum(codec.packed_size(size, codec.residual_encoding(files.encoding)) for size in sizes)
    with contextlib.ExitStack() as stack:
        before = stack.enter_context(files.before.open("rb")) if files.before else None
        if before and os.fstat(before.fileno()).st_size != whole:
            before = None
        pairs = zip((files.step, files.left), files.spent, strict=True)
        step, left = (stack.enter_context(rewriting(path, spent)) for path, spent in pairs)
        yield Out(step, left, before, files.encoding)
        for file in (step, left):
            file.truncate()
