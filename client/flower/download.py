"""A model that comes in: straight from the wire into a safetensors file, one chunk in memory, resumable."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from usfmae.client import site_policy
from usfmae.client.rounds import apply_step, replay_corpus
from usfmae.client.rounds.jobs import Job
from usfmae.client.rounds.model_inspection import Inspection
from usfmae.client.rounds.participation import recipe_of
from usfmae.client.site import Site
from usfmae.core.errors import CheckpointError, PolicyError, ResourceError
from usfmae.core.federated import messages
from usfmae.core.federated.messages import TrainRequest
from usfmae.core.files import put
from usfmae.core.flower_objects import Fetch, Tensor, expect, references, tensor
from usfmae.core.log import note
from usfmae.core.tensors import TensorFile

logger = logging.getLogger(__name__)


def model(site: Site, request: TrainRequest, work: Job, ids: Mapping[str, str], fetch: Fetch) -> Inspection | None:
    """Fetch what a request brings: the base, the seed's decoder and the replay corpus where they come along.

    `ids`: the request's records by name. Returns what was seen of a base that was made here. PolicyError where a record
    is missing or unfit; ResourceError where the disk is too full.
    """
    work.place.mkdir(parents=True, exist_ok=True)
    wanted = {} if request.delta_from else {messages.ENCODER: work.base}
    if request.with_decoder:
        wanted[messages.DECODER] = work.decoder
    others = [(messages.STEP, request.delta_from), (messages.REPLAY, request.with_replay)]
    names = [*wanted, *(name for name, comes in others if comes)]
    absent = [name for name in names if name not in ids]
    if absent:
        raise PolicyError("request", f"has no record {absent[0]!r}", "refused")
    room = lambda size: site_policy.check_disk(site, size)  # noqa: E731
    for name, target in wanted.items():
        if not _whole(target):
            size = receive(ids[name], fetch, target, site.settings.max_model_gb * 1e9, room)
            note(logger, "downloaded", record=name, bytes=size)
    if request.with_replay:
        replay_corpus.receive(site, recipe_of(request).train, ids[messages.REPLAY], fetch, room)
    if not request.delta_from or work.base.exists():
        return None
    return apply_step.receive(request, work, ids[messages.STEP], fetch, room)


def _whole(target: Path) -> bool:
    """Whether an earlier call has left this file; one that a power cut damaged is fetched again."""
    try:
        TensorFile(target).close()
    except CheckpointError:
        return False
    return True


def receive(
    record: str,
    fetch: Fetch,
    target: Path,
    most_bytes: float,
    room: Callable[[int], None] = lambda size: None,
) -> int:
    """Write the fp32 tensors of the ArrayRecord `record` to a safetensors file; returns the file's size in bytes.

    Holds one chunk at a time. An interrupted call leaves `target.part` and goes on after the last whole tensor.
    `room` is request before anything is written, and raises where that many bytes do not fit. PolicyError for anything
    but float32 arrays or for more than `most_bytes`; ResourceError where the disk is full.
    """
    tensors = {name: tensor(fetch(id_)) for name, id_ in references(fetch(record), "ArrayRecord").items()}
    header, offsets, total = _layout(tensors)
    if total > most_bytes:
        raise PolicyError(f"model of {total} bytes", f"the site allows {most_bytes:.0f}", "raise max_model_gb")
    room(total)
    part, journal = target.with_suffix(".part"), target.with_suffix(".journal")
    done = _journal(journal, record) if part.exists() else set()
    try:
        with part.open("r+b" if done else "w+b") as file, journal.open("a" if done else "w") as marks:
            file.write(header)
            file.truncate(len(header) + total)
            marks.write("" if done else record + "\n")
            for name, described in tensors.items():
                if name not in done:
                    _receive_tensor(name, described, fetch, file, len(header) + offsets[name])
                    file.flush()
                    marks.write(json.dumps(name) + "\n")
                    marks.flush()
        put(part, target)
        journal.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(f"writing {target}", error.strerror or str(error), "free space on the disk") from None
    return len(header) + total


def _layout(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int], int]:
    """The safetensors header for fp32 tensors, each tensor's offset behind it, and the sum of their bytes."""
    entries: dict[str, Any] = {}
    offsets, end = {}, 0
    for name, described in sorted(tensors.items()):
        if described.dtype != "float32" or described.encoding != "numpy.ndarray":
            raise PolicyError(f"tensor {name!r:.80}", f"is {described.dtype:.20}, not float32", "refused")
        size = 4
        for n in described.shape:
            size *= n
        offsets[name], end = end, end + size
        entries[name] = {"dtype": "F32", "shape": described.shape, "data_offsets": [offsets[name], end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets, end


def _receive_tensor(name: str, described: Tensor, fetch: Fetch, file: BinaryIO, offset: int) -> None:
    """Copy a tensor's chunks behind its npy header to `offset`."""
    size = 4
    for n in described.shape:
        size *= n
    file.seek(offset)
    written, skip = 0, None
    for id_ in described.chunks:
        body = expect(fetch(id_), "ArrayChunk").body
        if skip is None:
            skip = _npy_header(name, body, described.shape)
            body = body[skip:]
        written += len(body)
        if written > size:
            break
        file.write(body)
    if written != size:
        raise PolicyError(f"tensor {name!r:.80}", f"has {written} bytes, its shape needs {size}", "refused")


def _npy_header(name: str, body: memoryview, shape: tuple[int, ...]) -> int:
    """Length of the npy header; PolicyError unless it says little-endian float32, C order and the announced shape."""
    import io

    from numpy.lib import format as npy

    stream = io.BytesIO(bytes(body[:4096]))
    try:
        version = npy.read_magic(stream)
        reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        stored, fortran, dtype = reader(stream)
    except Exception:  # NumPy reads a Python literal there, and a hostile one raises whatever it likes
        raise PolicyError(f"tensor {name!r:.80}", "is not in npy format", "refused") from None
    if stored != shape or (fortran and len(shape) > 1) or dtype.str != "<f4":
        raise PolicyError(f"tensor {name!r:.80}", f"holds {dtype.str} {stored}", "refused")
    return stream.tell()


def _journal(journal: Path, record: str) -> set[str]:
    """Names of tensors an interrupted download of the same record has written whole."""
    try:
        first, *names = journal.read_text().split("\n")
    except OSError:
        return set()
    if first != record:
        return set()
    return {json.loads(name) for name in names if name.startswith('"') and name.endswith('"')}
