"""Merging piece by piece in site order: the result depends on who was admitted, never on who came first.

Everything is read from disk in pieces, summed in float64 and written as float32 once, so memory is the same for two
sites and for thirty-two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from usfmae.core import update
from usfmae.core.files import replacing
from usfmae.core.tensors import TensorFile, Writer
from usfmae.server.merging.base import MergingRule, Values

PIECE = 512 * update.BLOCK  # values of one site in memory at a time


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


def pieces(
    base: TensorFile, updates: Sequence[TensorFile], encoding: str, trained: bool
) -> Iterator[tuple[str, slice, Values, Values]]:
    """(name, where in the flat tensor, base piece (n,), site pieces (S, n)): trained values, or differences."""
    read = update.trained if trained else update.unpack
    for name in base.shapes:
        whole = base.tensor(name).reshape(-1)
        packed = [file.raw(name) for file in updates]
        for start in range(0, max(whole.size, 1), PIECE):
            stop = min(start + PIECE, whole.size)
            rows = [read(data, whole, encoding, start, stop) for data in packed]
            yield name, slice(start, stop), whole[start:stop].astype(np.float64), np.stack(rows)


def gram(base: TensorFile, updates: Sequence[TensorFile], encoding: str) -> NDArray[np.float64]:
    """Inner products of the sites' differences (S, S): norms on the diagonal, directions beside it."""
    total = np.zeros((len(updates), len(updates)))
    for _, _, _, rows in pieces(base, updates, encoding, trained=False):
        total += rows @ rows.T
    return total


def merge(
    base: TensorFile,
    updates: Sequence[TensorFile],
    weights: Sequence[float],
    encoding: str,
    rule: MergingRule,
    target: Path,
    metadata: Mapping[str, str],
    memory: Mapping[str, tuple[Path | None, Path]] | None = None,
) -> str:
    """Write the next encoder and return its hash.

    `memory` gives, for each name the rule remembers, the file of the round before (None in the first) and the file to
    write. All files appear by rename, the encoder last. ResourceError where the disk is full: nothing has changed then.
    """
    with contextlib.ExitStack() as stack:
        out = Writer(_create(stack, target), base.shapes, metadata, "F32")
        old, new = {}, {}
        for name, (before, after) in (memory or {}).items():
            old[name] = stack.enter_context(TensorFile(before)) if before else None
            new[name] = Writer(_create(stack, after), base.shapes, {}, "F64")
        current = ""
        for name, where, old_values, rows in pieces(base, updates, encoding, trained=True):
            if name != current:
                current = name
                out.begin(name)
                held = {key: file.tensor(name).reshape(-1) if file else None for key, file in old.items()}
            kept = {key: _piece(values, where, old_values) for key, values in held.items()}
            out.write(rule.merge(old_values, rows, np.asarray(weights), kept))
            for key, values in kept.items():
                new[key].write(values)
        for writer in new.values():
            writer.finish()
        return out.finish()


def _piece(values: NDArray[np.float64] | None, where: slice, like: Values) -> Values:
    return np.zeros_like(like) if values is None else values[where].copy()


def _create(stack: contextlib.ExitStack, path: Path):  # type: ignore[no-untyped-def]
    return stack.enter_context(stack.enter_context(replacing(path)).open("wb"))
