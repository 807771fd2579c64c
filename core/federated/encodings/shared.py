"""shared: int8 codes of one unit that every site of a sealed round uses, so that a sum of codes is a sum of updates.

`shared:UNIT` names the unit, as the request signs it. Codes are (n, int8), no head; value = code * UNIT. A value beyond
code 127 is cut to it; what is cut off goes to the residual like every other error, and out with the next rounds.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from usfmae.core.errors import PolicyError
from usfmae.core.federated.encodings import int8
from usfmae.core.federated.encodings.base import Exact, Floats

NAME = "shared"
MOST = 127  # largest code
_FORM = re.compile(rf"{NAME}:(\d\.?\d*e?-?\d*)")


@dataclass(frozen=True)
class Shared:
    """The encoding with this unit."""

    unit: float
    block = int8.BLOCK
    residual = "int8"
    decay = 1.0

    @property
    def name(self) -> str:
        return f"{NAME}:{self.unit!r}"

    def size(self, count: int) -> int:
        return count

    def head(self, count: int) -> int:
        return 0

    def pack(self, values: Floats) -> tuple[bytes, float]:
        codes = np.empty(values.size, np.int8)
        square, unit = 0, np.float32(self.unit)
        for start in range(0, values.size, 2**16):  # a stretch that stays in the processor's cache
            where = slice(start, start + 2**16)
            nearest = np.rint(values[where] / unit)
            codes[where] = np.clip(nearest, -MOST, MOST, out=nearest)
            values[where] -= nearest * unit
            square += int(np.square(codes[where].astype(np.int64)).sum())
        return codes.tobytes(), square * self.unit**2

    def unpack(self, data: bytes | memoryview, count: int) -> Exact:
        return np.frombuffer(data, np.int8, count).astype(np.float64) * self.unit

    def add(self, data: bytes | memoryview, base: Floats) -> Floats:
        return np.asarray(base + np.frombuffer(data, np.int8, base.size).astype(np.float32) * np.float32(self.unit))

    def square(self, data: bytes | memoryview, count: int) -> float:
        codes = np.frombuffer(data, np.int8, count).astype(np.int64)
        return int(codes @ codes) * self.unit**2

    def largest(self, data: bytes | memoryview, count: int) -> float:
        return 128 * self.unit

    def pack_residual(self, error: Floats, data: bytes) -> bytes:
        return int8.Int8().pack_alone(error)

    def add_residual(self, residual: bytes, values: Floats) -> Floats:
        return int8.Int8().add_in_place(residual, values)


def parsed(name: str) -> Shared | None:
    """The encoding that `name` names; None where it names another kind. PolicyError where the unit is none."""
    if not name.startswith(f"{NAME}:"):
        return None
    form = _FORM.fullmatch(name)
    unit = float(form[1]) if form else 0.0
    if not 1e-30 < unit < 1e30 or not math.isfinite(unit):
        raise PolicyError(f"encoding {name!r:.40}", "names no unit that weights can change by", "refused")
    return Shared(unit)


# --- the sum of several sites' codes, which is all that anyone sees of a sealed round ----------------------------------

SUM = "sum"
_SUM_FORM = re.compile(rf"{SUM}:(\d\.?\d*e?-?\d*):(\d+)")


@dataclass(frozen=True)
class Summed(Shared):
    """Sums of codes of `sites` sites, (n, int16); value = sum * unit / sites, their mean. For the merge alone."""

    sites: int = 1

    @property
    def name(self) -> str:
        return f"{SUM}:{self.unit!r}:{self.sites}"

    def size(self, count: int) -> int:
        return 2 * count

    def unpack(self, data: bytes | memoryview, count: int) -> Exact:
        return np.frombuffer(data, "<i2", count).astype(np.float64) * self.unit / self.sites


def parsed_sum(name: str) -> Summed | None:
    """The encoding of a sum that `name` names; None where it names another kind."""
    form = _SUM_FORM.fullmatch(name)
    return Summed(float(form[1]), int(form[2])) if form else None
