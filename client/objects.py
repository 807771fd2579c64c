"""Flower's object format: a message is a tree of content-addressed objects, and travels object by object.

    object   = "KIND CHILD,CHILD,... LENGTH" 0x00 body          id = SHA-256 of all its bytes
    Message -> RecordDict -> ConfigRecord | ArrayRecord -> Array -> ArrayChunk (at most 5 MiB each)

Reading and writing it here, one chunk at a time, keeps a site's memory small: Flower's own inflate holds a whole
model several times. tests/client/test_objects.py checks every function against the pinned Flower.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from usfmae.core.errors import PolicyError, ResourceError

CHUNK = 5 * 1024 * 1024  # bytes of an ArrayChunk's body
LARGEST = 8 * 1024 * 1024  # bytes of any one object
MOST_TENSORS = 10_000

Fetch = Callable[[str], bytes]  # object id -> the object's bytes, its hash already checked


@dataclass(frozen=True)
class Object:
    kind: str
    children: tuple[str, ...]
    body: memoryview


@dataclass(frozen=True)
class Tree:
    """Ids of an object and of all below it, children first."""

    id: str
    children: tuple[Tree, ...] = ()


@dataclass(frozen=True)
class Tensor:
    """Where a tensor's bytes come from: ids of its chunks, in order."""

    dtype: str
    shape: tuple[int, ...]
    encoding: str  # Flower's `stype`
    chunks: tuple[str, ...]


def object_id(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def join(kind: str, children: Iterable[str], body: bytes | memoryview) -> bytes:
    return f"{kind} {','.join(children)} {len(body)}\0".encode() + body


def split(content: bytes) -> Object:
    """Head and body of an object from an untrusted peer; PolicyError where it is malformed."""
    head, zero, _ = content.partition(b"\0")
    try:
        kind, children, length = head.decode().split(" ")
        if not zero or int(length) != len(content) - len(head) - 1:
            raise ValueError
    except (ValueError, UnicodeDecodeError):
        raise PolicyError("message object", "is malformed", "the aggregator speaks another format") from None
    return Object(kind, tuple(children.split(",")) if children else (), memoryview(content)[len(head) + 1 :])


def expect(content: bytes, kind: str) -> Object:
    found = split(content)
    if found.kind != kind:
        raise PolicyError(f"message object {found.kind:.40}", f"stands where {kind} belongs", "refused")
    return found


def references(content: bytes, kind: str) -> dict[str, str]:
    """Names and ids in a RecordDict or ArrayRecord."""
    found = expect(content, kind)
    names = _json(found)
    if set(names.values()) != set(found.children):
        raise PolicyError(f"message object {kind}", "names other children than it has", "refused")
    return names


def tensor(content: bytes) -> Tensor:
    """An Array's own description, without its bytes."""
    found = expect(content, "Array")
    about = _json(found)
    try:
        chunks = tuple(found.children[i] for i in about["arraychunk_ids"])
        shape = tuple(int(n) for n in about["shape"])
        if min((*shape, 0)) < 0:
            raise ValueError
        return Tensor(str(about["dtype"]), shape, str(about["stype"]), chunks)
    except (KeyError, IndexError, TypeError, ValueError):
        raise PolicyError("message object Array", "is malformed", "refused") from None


def _json(found: Object) -> dict[str, Any]:
    try:
        value = json.loads(bytes(found.body))
    except ValueError:
        value = None
    if not isinstance(value, dict) or len(value) > MOST_TENSORS:
        raise PolicyError(f"message object {found.kind}", "is malformed", "refused")
    return value


# --- receiving: straight into a safetensors file ---------------------------------------------------------------------


def receive(
    record: str,
    fetch: Fetch,
    target: Path,
    most_bytes: float,
    room: Callable[[int], None] = lambda size: None,
) -> int:
    """Write the fp32 tensors of the ArrayRecord `record` to a safetensors file; returns the file's size in bytes.

    Holds one chunk at a time. An interrupted call leaves `target.part` and goes on after the last whole tensor.
    `room` is asked before anything is written, and raises where that many bytes do not fit. PolicyError for anything
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
        part.replace(target)
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
        found, fortran, dtype = reader(stream)
    except ValueError:
        raise PolicyError(f"tensor {name!r:.80}", "is not in npy format", "refused") from None
    if found != shape or (fortran and len(shape) > 1) or dtype.str != "<f4":
        raise PolicyError(f"tensor {name!r:.80}", f"holds {dtype.str} {found}", "refused")
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


# --- sending: objects are made when they are asked for ---------------------------------------------------------------


@dataclass(frozen=True)
class Parcel:
    """A message ready to send: its tree, and a way to make any of its objects again."""

    tree: Tree
    make: Mapping[str, Callable[[], bytes]]

    def contents(self, wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """The wanted objects, children before parents."""
        missing = set(wanted)
        for id_ in walk(self.tree):
            if id_ in missing:
                missing.remove(id_)
                yield id_, self.make[id_]()


def walk(tree: Tree) -> Iterator[str]:
    for child in tree.children:
        yield from walk(child)
    yield tree.id


def parcel(message_body: bytes, config: Mapping[str, bytes], arrays: Mapping[str, Mapping[str, Part]]) -> Parcel:
    """The tree of a Message: ConfigRecord bodies by record name, and arrays by record name and tensor name."""
    make: dict[str, Callable[[], bytes]] = {}

    def add(content: bytes) -> str:
        id_ = object_id(content)
        make[id_] = lambda: content
        return id_

    records: dict[str, Tree] = {}
    for name, body in config.items():
        records[name] = Tree(add(join("ConfigRecord", (), body)))
    for name, parts in arrays.items():
        trees = {tensor_name: _array(part, make) for tensor_name, part in parts.items()}
        records[name] = _group("ArrayRecord", trees, add)
    content = _group("RecordDict", records, add)
    return Parcel(Tree(add(join("Message", (content.id,), message_body)), (content,)), make)


@dataclass(frozen=True)
class Part:
    """A tensor's bytes, read when needed."""

    dtype: str
    shape: tuple[int, ...]
    encoding: str
    size: int
    read: Callable[[int, int], bytes]  # start, stop -> bytes


def _group(kind: str, trees: Mapping[str, Tree], add: Callable[[bytes], str]) -> Tree:
    unique = {tree.id: tree for tree in trees.values()}
    body = json.dumps({name: tree.id for name, tree in trees.items()}).encode()
    return Tree(add(join(kind, unique, body)), tuple(unique.values()))


def _array(part: Part, make: dict[str, Callable[[], bytes]]) -> Tree:
    ids: list[str] = []
    for start in range(0, part.size, CHUNK):
        stop = min(start + CHUNK, part.size)

        def chunk(start: int = start, stop: int = stop) -> bytes:
            return join("ArrayChunk", (), part.read(start, stop))

        ids.append(object_id(chunk()))
        make[ids[-1]] = chunk
    unique = list(dict.fromkeys(ids))
    about = {
        "dtype": part.dtype,
        "shape": part.shape,
        "stype": part.encoding,
        "arraychunk_ids": [unique.index(i) for i in ids],
    }
    content = join("Array", unique, json.dumps(about).encode())
    id_ = object_id(content)
    make[id_] = lambda: content
    return Tree(id_, tuple(Tree(i) for i in unique))
