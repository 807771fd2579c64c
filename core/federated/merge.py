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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from usfmae.core.federated import codec, downlink
from usfmae.core.federated.continuity import FIXED, Moved
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


RAISED = 2.0  # times its share of the images that a site weighs at most, whatever the others lose to their caps


def shares(images: Sequence[int], cap: float, confirmed: Sequence[bool] | None = None) -> list[float]:
    """Each site's share of a merge: by images, none above `cap`, and none above the fair share 1 / S unless confirmed.

    A cap is never below the fair share. What a capped site loses goes to the others in proportion to their images, as
    long as it raises nobody to more than twice the share of its images: a few images must not carry a merge. What is
    left over is not taken: then the shares sum to less than 1, and the round's step is shorter by that.
    """
    fair, whole = 1 / len(images), sum(images)
    limits = [max(cap, fair) if is_confirmed else fair for is_confirmed in confirmed or [True] * len(images)]
    capped: set[int] = set()
    while True:
        rest = 1 - sum(limits[i] for i in capped)
        total = sum(count for i, count in enumerate(images) if i not in capped)
        share = [
            limits[i] if i in capped else min(rest * count / max(total, 1), RAISED * count / max(whole, 1))
            for i, count in enumerate(images)
        ]
        over = {i for i, value in enumerate(share) if i not in capped and value > limits[i] * (1 + 1e-12)}
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
        for part in side_by_side(products, pieces):
            total += part
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


@dataclass(frozen=True)
class Blend:
    """How much of each update goes into a merge, in site order."""

    weights: Values  # (S,) shares that sum to 1
    scales: Values  # (S,) what each update is multiplied by before: 1 leaves it as it is
    step: float = 1.0  # what the merged step is multiplied by
    cuts: Mapping[str, float] = field(default_factory=dict)  # and the steps of single tensors besides

    def factor(self, tensor: str) -> float:
        """What the merged step of a tensor is multiplied by: 0 for one that is fixed."""
        return 0.0 if tensor in FIXED else self.step * self.cuts.get(tensor, 1.0)


def blended(weights: Sequence[float], scales: Sequence[float] | None = None) -> Blend:
    """`weights` that sum to less than 1 shorten every update by what is missing."""
    shares_, total = np.asarray(weights, np.float64), float(sum(weights))
    cut = np.ones(len(shares_)) if scales is None else np.asarray(scales, np.float64)
    return Blend(shares_ / total, cut * total) if total < 1 - 1e-9 else Blend(shares_, cut)


@dataclass(frozen=True)
class Merged:
    """What a merge wrote."""

    content: str  # tensors_id of the encoder
    length: float  # L2 norm of its change
    tensors: Mapping[str, Moved]  # how far each of its tensors went


@dataclass(frozen=True)
class Admitted:
    """The updates that a round merges."""

    updates: Sequence[TensorFile]  # in site order
    encoding: str  # of their tensors
    blend: Blend


@dataclass(frozen=True)
class MergeFiles:
    """Where a merge writes. All files appear by rename, the encoder last."""

    encoder: Path
    metadata: Mapping[str, str]  # of the encoder
    memory: Mapping[str, tuple[Path | None, Path]] = field(default_factory=dict)
    """For each name the rule remembers: the file of the round before (None in the first) and the file to write."""
    step: downlink.StepFiles | None = None  # with it the encoder is the base plus a packed step, which is written there


def merge(base: TensorFile, admitted: Admitted, rule: MergingRule, files: MergeFiles) -> Merged:
    """Write the next encoder. ResourceError where the disk is full: nothing has changed then."""
    blend, encoding = admitted.blend, admitted.encoding
    with contextlib.ExitStack() as stack:
        # The files to write, with those of the round before beside them.
        out = Writer(_create(stack, files.encoder), base.shapes, files.metadata, "F32")
        old, new = {}, {}
        for name, (before, after) in files.memory.items():
            old[name] = stack.enter_context(TensorFile(before)) if before else None
            new[name] = Writer(_create(stack, after), base.shapes, {}, "F64")
        sizes = {name: math.prod(shape) for name, shape in base.shapes.items()}
        down = stack.enter_context(downlink.writing(files.step, sizes.values())) if files.step else None

        # Tensor by tensor, piece by piece: merged in several threads, written in order.
        moved = {}
        for name, pieces in tensors(base, admitted.updates, encoding):
            squares = np.zeros(3)
            out.begin(name)
            held = {key: file.tensor(name).reshape(-1) if file else None for key, file in old.items()}
            left = down.before(sizes[name]) if down else None
            down_as = files.step.encoding if files.step else ""
            rules = _TensorRules(rule, blend, blend.factor(name))
            work = partial(_next, rules=rules, encodings=(encoding, down_as), held=held, left=left)
            for values, new_memory, made, sums in side_by_side(work, pieces):
                out.write(values)
                squares += sums
                for key, remembered in new_memory.items():
                    new[key].write(remembered)
                if down and made:
                    down.write(made)
            if down:
                down.end()
            moved[name] = Moved(*np.sqrt(squares).tolist())

        for writer in new.values():
            writer.finish()
        return Merged(out.finish(), math.sqrt(sum(one.step**2 for one in moved.values())), moved)


@dataclass(frozen=True)
class _TensorRules:
    """How one tensor is merged."""

    rule: MergingRule
    blend: Blend
    factor: float  # what its merged step is multiplied by


def _merged(
    piece: Piece, rules: _TensorRules, encoding: str, held: Mapping[str, Values | None]
) -> tuple[Values, dict[str, Values]]:
    """The next weights of a piece, and what the rule remembers of it."""
    # What each site made of the piece, cut to its scale.
    rule, blend, factor = rules.rule, rules.blend, rules.factor
    base = piece.base.astype(np.float64)
    trained = np.empty((len(piece.packed), base.size))
    for row, data, scale in zip(trained, piece.packed, blend.scales, strict=True):
        row[...] = codec.trained(data, piece.base, encoding)
        if scale != 1:
            row -= base
            row *= scale
            row += base

    # The rule, on what it remembers of the round before.
    before = {
        key: np.full(piece.base.size, rule.start(key)) if values is None else values[piece.where]
        for key, values in held.items()
    }
    memory = {key: values.copy() for key, values in before.items()}
    values = rule.merge(base, trained, blend.weights, memory)
    if factor == 1:
        return values, memory

    # A step that is cut leaves no more of itself in the memory than in the encoder: else the next rounds make up for it.
    memory = {key: before[key] + factor * (now - before[key]) for key, now in memory.items()}
    return base + factor * (values - base), memory


def _next(
    piece: Piece,
    rules: _TensorRules,
    encodings: tuple[str, str],
    held: Mapping[str, Values | None],
    left: Callable[[slice], bytes] | None,
) -> tuple[Values | Floats, dict[str, Values], downlink.Stepped | None, Values]:
    """What is written of a piece, what the rule remembers of it, the step that leads there, where one is packed, and
    the sums of squares of the base, the change, and the result: (3,).

    `encodings`: of the updates, and of the step. `left` reads what the step before left out.
    """
    values, memory = _merged(piece, rules, encodings[0], held)
    change = values - piece.base
    squares = np.array([float(np.square(part).sum(dtype=np.float64)) for part in (piece.base, change, values)])
    if left is None:
        return values, memory, None, squares
    made = downlink.stepped(values, piece.base, left(piece.where), encodings[1])
    return made.values, memory, made, squares


def mix_memory(before: Path | None, after: Path, share: float, start: float) -> None:
    """Keep this share of what a rule's memory changed in a round, as an averaged encoder keeps it of its step.

    `before`: the memory of the round before, None in the first; there every value was `start`. Written over `after`.
    """
    with contextlib.ExitStack() as stack:
        new = stack.enter_context(TensorFile(after))
        old = stack.enter_context(TensorFile(before)) if before else None
        writer = Writer(_create(stack, after), new.shapes, {}, "F64")
        for name in new.shapes:
            was = old.tensor(name) if old else start
            writer.add(name, was + share * (new.tensor(name) - was))
        writer.finish()


def _create(stack: contextlib.ExitStack, path: Path):  # type: ignore[no-untyped-def]
    return stack.enter_context(stack.enter_context(replacing(path)).open("wb"))
