"""Arrays of bytes that come in: straight into a file, chunk by chunk, there only when it is whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from usfmae.core import flower_objects
from usfmae.core.errors import PolicyError, ResourceError
from usfmae.core.federated import messages
from usfmae.core.files import put


def length(name: str, array: flower_objects.Tensor) -> int:
    """Bytes of an array of bytes; PolicyError where it is none."""
    if array.encoding != messages.RAW or len(array.shape) != 1:
        raise PolicyError(f"file {name!r:.80}", "is not an array of bytes", "refused")
    return array.shape[0]


def receive(target: Path, array: flower_objects.Tensor, fetch: flower_objects.Fetch) -> None:
    """Fetch an array of bytes into a file; an interrupted call goes on after the last whole chunk."""
    part = _part(target)
    done = part.stat().st_size // flower_objects.CHUNK if part.exists() else 0
    bodies = (flower_objects.expect(fetch(id_), "ArrayChunk").body for id_ in array.chunks[done:])
    write(target, length(target.name, array), bodies, done * flower_objects.CHUNK)


def write(target: Path, size: int, bodies: Iterable[memoryview | bytes], done: int = 0) -> None:
    """A file of `size` bytes; the first `done` bytes of an earlier attempt stay.

    PolicyError where it becomes another size; ResourceError where the disk is full.
    """
    if target.exists() and target.stat().st_size == size:
        return
    part, written = _part(target), done
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
    return target.with_name(target.name + ".part")
