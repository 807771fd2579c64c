"""The encoder that comes in, inspected tensor by tensor before anything is trained on it.

A malicious or broken aggregator can send weights that make an update give away images: rows that copy each other or
are dead (Fowl et al. 2022, arXiv:2110.13057; MedLeak, arXiv:2407.09972), also under noise, or values far from anything
training makes. The request's signature says who sent the weights; this says whether they are like an encoder's. NumPy
alone, one tensor in memory at a time. How the whole behaves on the site's images is measured in encoder_behaviour.py.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usfmae.client.rounds.campaigns import AcceptedEncoder
from usfmae.core.errors import PolicyError, ResourceError
from usfmae.core.federated.continuity import continues
from usfmae.core.tensors import square_sum, tensor_head

LARGEST_VALUE = 1e4  # no trained weight of a normalised transformer comes near
LONGEST_HEADER = 2**24  # bytes
FEWEST_ROWS = 8  # below this, rows say nothing
DIRECTIONS = 4  # random ones, along which rows are compared
CLOSE = 1e-4  # of unit length: rows nearer than this are one
MOST_ALIKE = 0.01  # share of rows that may be dead or copies of others; one row always may
SAMPLED = 256  # rows of a tensor whose common direction is measured
PASSES = 8  # of the power iteration that finds it
ALIGNED = 0.9  # cosine with the common direction: copies under noise of 48 % of their length still reach it
FREE_ROWS = ("decoder_", "pos_embed")  # neighbouring pixels are alike; positions are a fixed table
MOST_ALIGNED = 0.1  # share of rows that may; of encoders trained here none did, their largest cosine was 0.46


@dataclass(frozen=True)
class InspectionLimits:
    """Between which an incoming encoder may lie."""

    max_norm_ratio: float = 3.0  # of a tensor's norm to the parent's, or the reverse
    most_aligned: float = MOST_ALIGNED  # share of a weight's rows that may point one way


class Inspection:
    """What was seen of weights, tensor by tensor in the order of names: their hash, and norms and shapes by name."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.norms: dict[str, float] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.aligned: dict[str, float] = {}  # share of rows that point one way, of the encoder's weights

    def add(self, name: str, tensor: NDArray[np.float32]) -> None:
        """PolicyError where values or rows are none that training makes."""
        self._digest.update(tensor_head(name, str(tensor.dtype), tensor.shape))
        self._digest.update(tensor.reshape(-1).view(np.uint8).data)
        self.norms[name], self.shapes[name] = _sound(name, tensor), tensor.shape
        if not name.startswith(FREE_ROWS):
            self.aligned[name] = rows_aligned(tensor)

    def id(self) -> str:
        """Their tensors_id."""
        return self._digest.hexdigest()


def read(file: Path) -> Inspection:
    """Inspect a safetensors file of fp32 weights; PolicyError where it is unreadable or unfit."""
    seen = Inspection()
    for name, tensor in tensors(file):
        seen.add(name, tensor)
    return seen


def inspect(
    file: Path,
    base: str,
    parent: AcceptedEncoder | None = None,
    limits: InspectionLimits | None = None,
    seen: Inspection | None = None,
) -> Inspection:
    """What a safetensors file of fp32 weights holds. PolicyError where it is not the base, or unfit.

    `base` is the tensors_id the coordinator signed; `parent` the encoder that this site accepted last; `seen` what was
    seen of the file as it was written.
    """
    limits = limits or InspectionLimits()
    seen = seen or read(file)
    if seen.id() != base:
        raise PolicyError("incoming encoder", "is not the one the coordinator signed (hash)", "refused")
    for name, share in seen.aligned.items():
        if share > limits.most_aligned:
            why = f"{share:.0%} of its rows point one way (at most {limits.most_aligned:.0%}): made to recover images, or broken"
            raise PolicyError(f"incoming tensor {name!r:.80}", why, "refused; ask the coordinator")
    if parent is not None:
        _compare_shapes(seen.shapes, parent.shapes)
        _compare(seen.norms, parent.norms, limits.max_norm_ratio)
    return seen


def inspect_decoder(file: Path, signed: str) -> None:
    """PolicyError where the seed's decoder is not the `signed` one, or holds what training does not make."""
    if read(file).id() != signed:
        raise PolicyError("the seed's decoder", "is not the one the coordinator signed (hash)", "refused")


def tensors(file: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Names, sorted, and values of a safetensors file of fp32; read, not mapped, so that one at a time is in memory."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, LONGEST_HEADER)))
            for name in sorted(set(header) - {"__metadata__"}):
                start, stop = header[name]["data_offsets"]
                stream.seek(8 + length + start)
                yield name, np.fromfile(stream, "<f4", (stop - start) // 4).reshape(header[name]["shape"])
    except OSError as error:  # our own disk's fault; the path does not go to the coordinator
        raise ResourceError(f"reading {file}", error.strerror or str(error), "look at the disk") from None
    except (ValueError, KeyError, TypeError) as error:
        raise PolicyError("incoming encoder", f"is unreadable: {error}", "refused") from None


def _sound(name: str, tensor: NDArray[Any]) -> float:
    """The tensor's L2 norm; PolicyError where its values or rows are none that training makes."""
    largest = max(float(tensor.max(initial=0)), -float(tensor.min(initial=0)))
    if not np.isfinite(largest):  # NaN goes through max
        raise PolicyError(f"incoming tensor {name!r:.80}", "holds NaN or infinity", "refused")
    if largest > LARGEST_VALUE:
        raise PolicyError(f"incoming tensor {name!r:.80}", f"holds values beyond {LARGEST_VALUE:g}", "refused")
    alike = rows_alike(tensor)
    if alike > 1 and alike > MOST_ALIKE * tensor.shape[0 if tensor.shape[0] > 1 else -2]:
        raise PolicyError(
            f"incoming tensor {name!r:.80}",
            f"{alike} rows are zero or copies of others: made to recover images, or broken",
            "refused; ask the coordinator",
        )
    return math.sqrt(square_sum(tensor))


def rows_alike(tensor: NDArray[Any]) -> int:
    """Rows that are zero, or point the same or opposite way as an earlier row (copies up to a factor).

    Such rows have equal lengths along any direction, once they are of unit length. Along a few random directions only
    they do, so that a sort finds the candidates, and cosines decide among those that came to lie side by side.
    """
    if tensor.ndim < 2 or tensor.shape[-1] < 2:
        return 0
    rows = tensor.reshape(tensor.shape[0], -1) if tensor.shape[0] > 1 else tensor.reshape(-1, tensor.shape[-1])
    if len(rows) < FEWEST_ROWS:
        return 0
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    live = np.flatnonzero(lengths > 0)
    directions = np.random.default_rng(0).standard_normal((rows.shape[1], DIRECTIONS)).astype(np.float32)
    seen = np.abs(rows @ directions)[live] / lengths[live, None]
    order = np.argsort(seen[:, 0])
    near = (np.abs(np.diff(seen[order], axis=0)) < CLOSE).all(axis=1)
    first, second = live[order[:-1][near]], live[order[1:][near]]
    cosines = np.abs(np.einsum("ij,ij->i", rows[first], rows[second])) / (lengths[first] * lengths[second])
    return len(rows) - len(live) + int((cosines > 1 - CLOSE).sum())


def rows_aligned(tensor: NDArray[Any]) -> float:
    """Share of a weight's rows that point along one direction, as they are or once their mean is taken away.

    Copies of one row under noise are no copies of each other, but they all lie near their common direction.
    """
    if tensor.ndim < 2 or tensor.shape[0] < FEWEST_ROWS or math.prod(tensor.shape[1:]) < FEWEST_ROWS:
        return 0.0
    step = -(-tensor.shape[0] // SAMPLED)
    rows = tensor[::step].reshape(-1, math.prod(tensor.shape[1:])).astype(np.float32)
    return max(_aligned(rows), _aligned(rows - rows.mean(axis=0)))


def _aligned(rows: NDArray[np.float32]) -> float:
    """Share of rows (N, D) whose cosine with the first right singular vector of the unit rows is near one."""
    units = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    along = np.random.default_rng(0).standard_normal(units.shape[1]).astype(np.float32)
    for _ in range(PASSES):
        along = units.T @ (units @ along)
        along /= max(float(np.linalg.norm(along)), 1e-12)
    return float((np.abs(units @ along) > ALIGNED).mean())


def _compare_shapes(shapes: Mapping[str, Sequence[int]], parent: Mapping[str, Sequence[int]]) -> None:
    for name, shape in shapes.items():
        before = parent.get(name, shape)
        if tuple(shape) != tuple(before):
            was = f"shape went from {tuple(before)} to {tuple(shape)}"
            raise PolicyError(f"incoming tensor {name!r:.80}", was, "refused; ask the coordinator")


def _compare(norms: Mapping[str, float], parent: Mapping[str, float], ratio: float) -> None:
    if set(parent) != set(norms):
        raise PolicyError("incoming encoder", "has other tensors than its parent", "refused")
    for name, norm in norms.items():
        old = parent[name]
        if not continues(old, norm, ratio):
            raise PolicyError(
                f"incoming tensor {name!r:.80}",
                f"norm went from {old:.3g} to {norm:.3g}",
                "refused; ask the coordinator",
            )
