"""part: a sixteenth of the values in each round, the same for every site, packed as another encoding packs them.

`INNER@TURN/16`: of every 16 blocks of 256 values the block number TURN, which is the round's number modulo 16. A sealed
round needs it: masked codes can only be added up where all sites send the same places, so that nobody may choose the
largest. All other values wait where they arose, in int8, and DECAY of them is added to the next difference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from usfmae.core.federated.encodings.base import Encoding, Exact, Floats
from usfmae.core.federated.encodings.int8 import BLOCK, Int8
from usfmae.core.federated.encodings.sparse import DECAY

PARTS = 16
SIGN = "@"
REST = Int8()  # how what waits lies on disk
_TURN = re.compile(rf"(\d|1\d)/{PARTS}")


def name(inner: str, number: int) -> str:
    """The encoding of round `number`."""
    return in_turn(inner, f"{number % PARTS}/{PARTS}")


def in_turn(inner: str, text: str) -> str:
    """The encoding of the part that `TURN/16` names; `inner` itself, of all values, where the text is empty."""
    return f"{inner}{SIGN}{text}" if text else inner


def turn(text: str) -> int | None:
    """The number of the part that `TURN/16` names; None where it names none."""
    form = _TURN.fullmatch(text)
    number = int(form[1]) if form else PARTS
    return number if number < PARTS else None


@dataclass(frozen=True)
class PartInTurn:
    """One part of the values (n,), packed by `inner`, whose blocks are of 256 values or of one."""

    inner: Encoding
    turn: int
    block = BLOCK * PARTS
    residual = "int8"
    decay = DECAY

    def carried(self, count: int) -> int:
        """How many of `count` values are in this part."""
        full, rest = divmod(count, self.block)
        return BLOCK * full + min(max(rest - BLOCK * self.turn, 0), BLOCK)

    def views(self, values: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """The part's values in place: of whole rows of blocks (rows, 256), and of the last row (fewer than 257,)."""
        whole = values.size // self.block * self.block
        rows = values[:whole].reshape(-1, PARTS, BLOCK)[:, self.turn]
        first = whole + BLOCK * self.turn
        return rows, values[first : first + BLOCK]

    def size(self, count: int) -> int:
        return self.inner.size(self.carried(count))

    def head(self, count: int) -> int:
        return self.inner.head(self.carried(count))

    def pack(self, values: Floats) -> tuple[bytes, float]:
        carried = self._taken(values)
        packed = self.inner.pack(carried)
        self._put(carried, values)
        return packed

    def unpack(self, data: bytes | memoryview, count: int) -> Exact:
        values = np.zeros(count)
        self._put(self.inner.unpack(data, self.carried(count)), values)
        return values

    def add(self, data: bytes | memoryview, base: Floats) -> Floats:
        new = base.astype(np.float32, copy=True)
        self._put(self.inner.add(data, self._taken(base)), new)
        return new

    def square(self, data: bytes | memoryview, count: int) -> float:
        return self.inner.square(data, self.carried(count))

    def largest(self, data: bytes | memoryview, count: int) -> float:
        return self.inner.largest(data, self.carried(count))

    def pack_residual(self, error: Floats, data: bytes) -> bytes:
        return REST.pack_alone(error)

    def add_residual(self, residual: bytes, values: Floats) -> Floats:
        return REST.add_in_place(residual, values, self.decay)

    def _taken(self, values: Floats) -> Floats:
        """A copy of the part's values, (carried,)."""
        return np.concatenate([view.reshape(-1) for view in self.views(values)]).astype(np.float32, copy=False)

    def _put(self, carried: NDArray[np.floating], values: NDArray[np.floating]) -> None:
        """Write the part's values into their places."""
        rows, last = self.views(values)
        rows[...] = carried[: rows.size].reshape(rows.shape)
        last[...] = carried[rows.size :]
