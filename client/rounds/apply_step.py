"""The round's encoder, made from an earlier one that this site has and a packed step (the difference).

The result is inspected like an encoder that came whole, and must have the hash the coordinator signed. Where it cannot
be made (no such encoder any more, a damaged file, an aggregator restored from a backup), the site asks for the whole
encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from usfmae.client.flower import download
from usfmae.client.rounds import jobs
from usfmae.client.rounds.jobs import Job
from usfmae.client.rounds.model_inspection import Inspection
from usfmae.client.site import Site
from usfmae.core import flower_objects
from usfmae.core.errors import CheckpointError, PolicyError, ResourceError
from usfmae.core.federated import codec, messages
from usfmae.core.federated.messages import DeclineReason, TrainRequest
from usfmae.core.files import put
from usfmae.core.tensors import TensorFile, Writer


class LostError(PolicyError):
    """Something this site should have is lost or damaged; the coordinator is asked for it."""

    def __init__(self, what: str, why: str, needed: DeclineReason) -> None:
        super().__init__(what, why, "the coordinator is asked for it")
        self.needed = needed


def missing_base(site: Site, request: TrainRequest) -> str:
    """What to answer where the encoder that the step is applied to is not here; "" where nothing is missing."""
    return DeclineReason.NEED_BASE if request.delta_from and _start(site, request) is None else ""


def _start(site: Site, request: TrainRequest) -> Path | None:
    """The encoder that the step is applied to, from any round this site took part in."""
    for request_file in (site.root / "jobs").glob("*/request.json"):
        work = Job(site, request_file.parent)
        if work.request.get("base") == request.delta_from and _is_readable(work.base):
            return work.base
    return None


def _is_readable(base: Path) -> bool:
    """Whether a file is there and as long as its header says: a damaged one is asked for again."""
    try:
        with TensorFile(base) as file:
            return base.stat().st_size == file.size
    except (CheckpointError, OSError):
        return False


def receive(
    request: TrainRequest, work: Job, record: str, fetch: flower_objects.Fetch, check_room: Callable[[int], None]
) -> Inspection:
    """Fetch the step in the ArrayRecord `record` and apply it. LostError where it does not lead to the signed encoder."""
    arrays = flower_objects.references(fetch(record), "ArrayRecord")
    if list(arrays) != [messages.STEP]:
        raise PolicyError("request", f"has no array {messages.STEP!r}", "refused")
    array = flower_objects.tensor(fetch(arrays[messages.STEP]))
    size, file = download.byte_length(messages.STEP, array), work.place / "step.bin"
    if size > work.site.settings.max_model_gb * 1e9:
        raise PolicyError(f"step of {size} bytes", "is more than the site allows", "raise max_model_gb")
    check_room(size)
    download.receive_bytes(file, array, fetch)
    return apply_step(request, work, file, check_room)


def apply_step(request: TrainRequest, work: Job, step: Path, check_room: Callable[[int], None]) -> Inspection:
    """Write the round's base, one tensor in memory, and remove the step; returns what was seen of the base."""
    start, part = _start(work.site, request), work.base.with_suffix(".part")
    try:
        if start is None:
            raise ValueError("the encoder it is applied to is not here")
        check_room(start.stat().st_size)
        spent = jobs.spent(work.site, request.campaign, start.name, start)
        if spent:
            spent.replace(part)
        with TensorFile(start) as old, step.open("rb") as packed, part.open("r+b" if spent else "wb") as file:
            seen = write(old, packed, request.step_encoding, file)
        if seen.id() != request.base:
            raise ValueError("it leads to another encoder than the coordinator signed")
        put(part, work.base)
    except (ValueError, CheckpointError) as error:
        step.unlink()
        raise LostError("step", str(error), DeclineReason.NEED_BASE) from None
    except OSError as error:
        raise ResourceError(f"writing {work.base}", error.strerror or str(error), "free space on the disk") from None
    finally:
        part.unlink(missing_ok=True)
    step.unlink()
    return seen


def write(old: TensorFile, packed: BinaryIO, encoding: str, file: BinaryIO) -> Inspection:
    """Write the tensors after the step, in the order of names. ValueError where the step is too short."""
    seen, writer = Inspection(), Writer(file, old.shapes, {}, "F32", hashed=False)
    for name, shape in old.shapes.items():
        data = packed.read(codec.packed_size(math.prod(shape), encoding))
        values = codec.stepped(data, old.tensor(name), encoding).reshape(shape)
        writer.add(name, values)
        seen.add(name, values)
    writer.finish()
    return seen
