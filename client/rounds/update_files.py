"""From a trained encoder to the files of an update: packed delta and rounding residue, one tensor in memory at a time.

Torch is not loaded here: whatever trained, its tensors come as NumPy arrays.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from usfmae.client import outbox
from usfmae.client.rounds import jobs
from usfmae.client.rounds.jobs import Job
from usfmae.core.federated import codec
from usfmae.core.federated.codec import Floats
from usfmae.core.files import rewriting
from usfmae.core.tensors import TensorFile, Writer

RESIDUAL = "residual.safetensors"


def pack(work: Job, before: Job | None, encoder: Iterable[tuple[str, Floats]], encoding: str) -> dict[str, Any]:
    """Write the update of `work` and what it could not express; returns what the result says of them.

    `encoder` gives names, in order, and trained values; `before` is the round whose residue is added to the difference.
    PolicyError where a value is not finite; ResourceError where the disk is full.
    """
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(TensorFile(work.base))
        sizes = {name: (codec.packed_size(math.prod(shape), encoding),) for name, shape in base.shapes.items()}
        out = _writer(stack, work.place / outbox.UPDATE, sizes, {"shapes": json.dumps(base.shapes)})
        lossy = encoding != "fp32"
        residual = _residual(stack, before, sizes)
        spent = jobs.spent(work.site, before.asked["campaign"], RESIDUAL, before.place / RESIDUAL) if before else None
        kept = _writer(stack, work.place / RESIDUAL, sizes, {}, spent) if lossy else None
        content, square = codec.PayloadHash(), 0.0
        for name, trained in encoder:
            zeros = np.zeros(trained.shape, np.float32)
            left = codec.stepped(residual.raw(name), zeros, encoding).reshape(zeros.shape) if residual else None
            data, error, norm = codec.pack_tensor(name, base.tensor(name), trained, encoding, left)
            content.add(name, data)
            square += norm**2
            out.add(name, data)
            if kept is not None and error is not None:
                kept.add(name, codec.finer(error.reshape(-1), data, encoding))
        for writer in (out, kept):
            if writer is not None:
                writer.finish()
    total = sum(size for (size,) in sizes.values())
    return {"content": content.id(), "encoding": encoding, "tensors": len(sizes), "bytes": total, "norm": square**0.5}


def _residual(stack: contextlib.ExitStack, before: Job | None, sizes: Mapping[str, tuple[int]]) -> TensorFile | None:
    """What the round before could not express; None without one, or where it was packed in another encoding."""
    path = before.place / RESIDUAL if before else None
    if path is None or not path.exists():
        return None
    file = stack.enter_context(TensorFile(path))
    return file if file.shapes == dict(sizes) else None


def _writer(
    stack: contextlib.ExitStack, path: Path, sizes: Any, metadata: dict[str, str], spent: Path | None = None
) -> Writer:
    return Writer(stack.enter_context(rewriting(path, spent)), sizes, metadata, "U8", hashed=False)
