"""From a trained encoder to the files of an update: packed delta and rounding residue, one tensor in memory at a time.

Torch is not loaded here: whatever trained, its tensors come as NumPy arrays.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from usfmae.client import outbox
from usfmae.client.jobs import Job
from usfmae.core import update
from usfmae.core.files import replacing
from usfmae.core.tensors import TensorFile, Writer
from usfmae.core.update import Floats

RESIDUAL = "residual.safetensors"


def pack(work: Job, before: Job | None, encoder: Iterable[tuple[str, Floats]], encoding: str) -> dict[str, Any]:
    """Write the update of `work` and what it could not express; returns what the result says of them.

    `encoder` gives names, in order, and trained values; `before` is the round whose residue is added to the difference.
    PolicyError where a value is not finite; ResourceError where the disk is full.
    """
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(TensorFile(work.base))
        old = before.place / RESIDUAL if before else None
        residual = stack.enter_context(TensorFile(old)) if old and old.exists() else None
        sizes = {name: (update.packed_size(math.prod(shape), encoding),) for name, shape in base.shapes.items()}
        out = _writer(stack, work.place / outbox.UPDATE, sizes, "U8", {"shapes": json.dumps(base.shapes)})
        lossy = encoding != "fp32"
        kept = _writer(stack, work.place / RESIDUAL, base.shapes, "F32", {}) if lossy else None
        content, square = update.PayloadHash(), 0.0
        for name, trained in encoder:
            left = residual.tensor(name) if residual else None
            data, error, norm = update.pack_tensor(name, base.tensor(name), trained, encoding, left)
            content.add(name, data)
            square += norm**2
            out.add(name, data)
            if kept is not None and error is not None:
                kept.add(name, error)
        for writer in (out, kept):
            if writer is not None:
                writer.finish()
    total = sum(size for (size,) in sizes.values())
    return {"content": content.id(), "encoding": encoding, "tensors": len(sizes), "bytes": total, "norm": square**0.5}


def _writer(stack: contextlib.ExitStack, path: Path, shapes: Any, dtype: str, metadata: dict[str, str]) -> Writer:
    file = stack.enter_context(stack.enter_context(replacing(path)).open("wb"))
    return Writer(file, shapes, metadata, dtype, hashed=False)
