"""What comes in goes straight from the wire into a file: one chunk in memory, there only when it is whole, resumable.

Tensors become a safetensors file, arrays of bytes (a step, a replay corpus) a file each. An attempt that was cut short
goes on after what it had written, unless the machine was started anew since: a power cut loses what was not flushed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from usfmae.core import flower_objects
from usfmae.core.errors import PolicyError, ResourceError
from usfmae.core.federated import messages
from usfmae.core.files import put, this_boot
from usfmae.core.flower_objects import Fetch, Tensor, expect, references, tensor


def receive(
    record: str,
    fetch: Fetch,
    target: Path,
    most_bytes: float,
    check_room: Callable[[int], None] = lambda size: None,
) -> int:
    """Write the fp32 tensors of the ArrayRecord `record` to a safetensors file; returns the file's size in bytes.

    Holds one chunk at a time. An interrupted call leaves `target.part` and goes on after the last whole tensor.
    `check_room` is called before anything is written, and raises where that many bytes do not fit. PolicyError for anything
    but float32 arrays or for more than `most_bytes`; ResourceError where the disk is full.
    """
    tensors = {name: tensor(fetch(id_)) for name, id_ in references(fetch(record), "ArrayRecord").items()}
    header, offsets, total = _layout(tensors)
    if total > most_bytes:
        raise PolicyError(f"model of {total} bytes", f"the site allows {most_bytes:.0f}", "raise max_model_gb")
    check_room(total)
    part, journal = target.with_suffix(".part"), target.with_suffix(".journal")
    attempt = f"{record} {this_boot()}"
    done = _journal(journal, attempt) if part.exists() else set()
    try:
        with part.open("r+b" if done else "w+b") as file, journal.open("a" if done else "w") as marks:
            file.write(header)
            file.truncate(len(header) + total)
            marks.write("" if done else attempt + "\n")
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


def _journal(journal: Path, attempt: str) -> set[str]:
    """Names of tensors an interrupted download of the same record has written whole since the machine started."""
    try:
        first, *names = journal.read_text().split("\n")
    except OSError:
        return set()
    if first != attempt:
        return set()
    return {json.loads(name) for name in names if name.startswith('"') and name.endswith('"')}


def byte_length(name: str, array: Tensor) -> int:
    """Bytes of an array of bytes; PolicyError where it is none."""
    if array.encoding != messages.RAW or len(array.shape) != 1:
        raise PolicyError(f"file {name!r:.80}", "is not an array of bytes", "refused")
    return array.shape[0]


def receive_bytes(target: Path, array: Tensor, fetch: Fetch) -> None:
    """Fetch an array of bytes into a file; an interrupted call goes on after the last whole chunk."""
    part = _part(target)
    done = part.stat().st_size // flower_objects.CHUNK if part.exists() else 0
    bodies = (expect(fetch(id_), "ArrayChunk").body for id_ in array.chunks[done:])
    write_bytes(target, byte_length(target.name, array), bodies, done * flower_objects.CHUNK)


def write_bytes(target: Path, size: int, bodies: Iterable[memoryview | bytes], done: int = 0) -> None:
    """A file of `size` bytes; the first `done` bytes of an earlier attempt stay.

    PolicyError where it becomes another size; ResourceError where the disk is full.
    """
    if target.exists() and target.stat().st_size == size:
        return
    part, written = _part(target), done
    for earlier in target.parent.glob(f"{target.name}.*.part"):
        if earlier != part:
            earlier.unlink()
    try:
        with part.open("r+b" if done else "wb") as file:
            file.truncate(done)
            file.seek(done)
            for body in bodies:
                written += len(body)
                if written > size:
                    break
                file.write(body)
        if written != size:
            part.unlink()
            raise PolicyError(f"file {target.name}", f"has other than its {size} bytes", "refused")
        put(part, target)
    except OSError as error:
        raise ResourceError(f"writing {target}", error.strerror or str(error), "free space on the disk") from None


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.{this_boot()[:8]}.part")
