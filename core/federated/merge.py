"""Merging piece by piece in site order: the result depends on who was admitted, never on who came first.

Everything is read from disk in pieces, summed in float64 and written as float32 once, so memory is the same for two
sites and for thirty-two.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from usfmae.core.federated import codec, downlink
from usfmae.core.federated.encodings import Floats
from usfmae.core.federated.rules.base import MergingRule, Values
from usfmae.core.files import replacing
from usfmae.core.tensors import TensorFile, Writer

PIECE = 2**17  # values of one site in memory at a time, at most
TOGETHER = 2**21  # values of all sites in memory at a time, for each thread
THREADS = 2
_POOL = ThreadPoolExecutor(THREADS, "merge")

P = TypeVar("P")
T = TypeVar("T")


def shares(images: Sequence[int], cap: float) -> list[float]:
    """Each site's share of a merge: by images, none above `cap` (or 1 / sites where the cap is smaller than that).

    What a capped site loses goes to the others in proportion to their images, until nobody is above the cap.
    """
    cap = max(cap, 1 / len(images))
    capped: set[int] = set()
    while True:
        rest = 1 - cap * len(capped)
        total = sum(count for i, count in enumerate(images) if i not in capped)
        share = [cap if i in capped else (rest * count / total if total else 0.0) for i, count in enumerate(images)]
        over = {i for i, value in enumerate(share) if i not in capped and value > cap * (1 + 1e-12)}
        if not over:
            return share
        capped |= over


@dataclass(frozen=True)
class Piece:
    """A stretch of one tensor: the base's values and the sites' packed bytes."""

    where: slice  # in the flat tensor, or empty
    base: Floats  # (n,)
    packed: list[bytes]  # S


def tensors(base: TensorFile, updates: Sequence[TensorFile], encoding: str) -> Iterator[tuple[str, Iterator[Piece]]]:
    """Every tensor by name, in pieces that are small however many sites there are."""
    block = codec.block(encoding)
    size = min(PIECE, max(block, TOGETHER // len(updates) // block * block))
    for name in base.shapes:
        yield name, _pieces(name, base.tensor(name).reshape(-1), updates, encoding, size)


def _pieces(name: str, whole: Floats, updates: Sequence[TensorFile], encoding: str, size: int) -> Iterator[Piece]:
    for start in range(0, max(whole.size, 1), size):
        stop = min(start + size, whole.size)
        where = codec.ranges(whole.size, encoding, start, stop)
        packed = [b"".join(file.raw(name, *part) for part in where) for file in updates]
        yield Piece(slice(start, stop), whole[start:stop], packed)


def gram(base: TensorFile, updates: Sequence[TensorFile], encoding: str) -> NDArray[np.float64]:
    """Inner products of the sites' differences (S, S): norms on the diagonal, directions beside it."""

    def products(piece: Piece) -> NDArray[np.float64]:
        return codec.products(piece.packed, piece.base, encoding)

    total = np.zeros((len(updates), len(updates)))
    for _, pieces in tensors(base, updates, encoding):
        for found in side_by_side(products, pieces):
            total += found
    return total


def side_by_side(work: Callable[[P], T], pieces: Iterable[P]) -> Iterator[T]:
    """Results in the order of the pieces; two or three are worked on at the same time, since NumPy lets threads run."""
    waiting: deque[Future[T]] = deque()
    for piece in pieces:
        waiting.append(_POOL.submit(work, piece))
        if len(waiting) > THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def merge(  # noqa: PLR0913
    base: TensorFile,
    updates: Sequence[TensorFile],
    weights: Sequence[float],
    encoding: str,
    rule: MergingRule,
    target: Path,
    metadata: Mapping[str, str],
    memory: Mapping[str, tuple[Path | None, Path]] | None = None,
    step_files: downlink.StepFiles | None = None,
) -> str:
    """Write the next encoder and return its hash.

    `memory` gives, for each name the rule remembers, the file of the round before (None in the first) and the file to
    write; with `step_files` the encoder is the base plus a packed step, which is written there. All files appear by rename,
    the encoder last. ResourceError where the disk is full: nothing has changed then.
    """
    with contextlib.ExitStack() as stack:
        out = Writer(_create(stack, target), base.shapes, metadata, "F32")
        old, new = {}, {}
        for name, (before, after) in (memory or {}).items():
            old[name] = stack.enter_context(TensorFile(before)) if before else None
            new[name] = Writer(_create(stack, after), base.shapes, {}, "F64")
        sizes = {name: math.prod(shape) for name, shape in base.shapes.items()}
        down = stack.enter_context(downlink.writing(step_files, sizes.values(), encoding)) if step_files else None
        for name, pieces in tensors(base, updates, encoding):
            out.begin(name)
            held = {key: file.tensor(name).reshape(-1) if file else None for key, file in old.items()}
            left = down.before(sizes[name]) if down else None
            work = partial(_next, rule=rule, weights=np.asarray(weights), encoding=encoding, held=held, left=left)
            for values, kept, made in side_by_side(work, pieces):
                out.write(values)
                for key, remembered in kept.items():
                    new[key].write(remembered)
                if down and made:
                    down.write(made)
            if down:
                down.end()
        for writer in new.values():
            writer.finish()
        return out.finish()


def _merged(
    piece: Piece, rule: MergingRule, weights: Values, encoding: str, held: Mapping[str, Values | None]
) -> tuple[Values, dict[str, Values]]:
    """The next weights of a piece, and what the rule remembers of it."""
    trained = np.empty((len(piece.packed), piece.base.size))
    for row, data in zip(trained, piece.packed, strict=True):
        row[...] = codec.trained(data, piece.base, encoding)
    kept = {
        key: np.full(piece.base.size, rule.start(key)) if values is None else values[piece.where].copy()
        for key, values in held.items()
    }
    return rule.merge(piece.base.astype(np.float64), trained, weights, kept), kept


def _next(
    piece: Piece,
    rule: MergingRule,
    weights: Values,
    encoding: str,
    held: Mapping[str, Values | None],
    left: Callable[[slice], bytes] | None,
) -> tuple[Values | Floats, dict[str, Values], downlink.Stepped | None]:
    """What is written of a piece, what the rule remembers of it, and the step that leads there, where one is packed.

    `left` reads what the step before left out.
    """
    values, kept = _merged(piece, rule, weights, encoding, held)
    if left is None:
        return values, kept, None
    made = downlink.stepped(values, piece.base, left(piece.where), encoding)
    return made.values, kept, made


def _create(stack: contextlib.ExitStack, path: Path):  # type: ignore[no-untyped-def]
    return stack.enter_context(stack.enter_context(replacing(path)).open("wb"))
