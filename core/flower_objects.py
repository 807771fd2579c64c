"""Flower's wire, as both sides speak it: the fleet API's calls and headers, and the object format.

A message is a tree of content-addressed objects, and travels object by object.

    object   = "KIND CHILD,CHILD,... LENGTH" 0x00 body          id = SHA-256 of all its bytes
    Message -> RecordDict -> ConfigRecord | ArrayRecord -> Array -> ArrayChunk (at most 5 MiB each)

Reading and writing it here, one chunk at a time, keeps memory small on both sides: Flower's own inflate holds a whole
model several times. Objects of a message that is sent are made when they are asked for, from the file they lie in.
tests/client/flower/test_flower_contract.py checks every function against the pinned Flower.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from usfmae.core.errors import PolicyError

CHUNK = 5 * 1024 * 1024  # bytes of an ArrayChunk's body
LARGEST = 8 * 1024 * 1024  # bytes of any one object
MOST_TENSORS = 10_000
LONGEST_ABOUT = 4096  # bytes of a tensor's description: enough for 800 chunks, 4 GB

FLEET_PATH = "/v1/fleet/"
PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER = "flwr-public-key", "flwr-signature", "flwr-timestamp"
NODE_UNKNOWN = "Invalid SuperNode authentication"  # 401: a known key under a node id that is not its own
HOLD_HEADER = "usfmae-hold"  # whole seconds a call for messages may be held; our gateway's own, others do not know it


class FleetCall(StrEnum):
    """The calls of Flower's fleet API that our gateway answers; a site makes all but the last."""

    ACTIVATE = "activate-node"
    DEACTIVATE = "deactivate-node"
    HEARTBEAT = "send-node-heartbeat"
    PULL_MESSAGES = "pull-messages"
    PUSH_MESSAGES = "push-messages"
    PULL_OBJECT = "pull-object"
    PUSH_OBJECT = "push-object"
    CONFIRM = "confirm-message-received"
    GET_RUN = "get-run"

    @property
    def path(self) -> str:
        return FLEET_PATH + self.value


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
    zero = content.find(b"\0")  # not `partition`, which would copy the body
    try:
        kind, children, length = content[: max(zero, 0)].decode().split(" ")
        if int(length) != len(content) - zero - 1:
            raise ValueError
    except (ValueError, UnicodeDecodeError):
        raise PolicyError("message object", "is malformed", "the aggregator speaks another format") from None
    return Object(kind, tuple(children.split(",")) if children else (), memoryview(content)[zero + 1 :])


def expect(content: bytes, kind: str) -> Object:
    object_ = split(content)
    if object_.kind != kind:
        raise PolicyError(f"message object {object_.kind:.40}", f"stands where {kind} belongs", "refused")
    return object_


def references(content: bytes, kind: str) -> dict[str, str]:
    """Names and ids in a RecordDict or ArrayRecord."""
    object_ = expect(content, kind)
    names = _json(object_)
    if not all(isinstance(id_, str) for id_ in names.values()) or set(names.values()) != set(object_.children):
        raise PolicyError(f"message object {kind}", "names other children than it has", "refused")
    return names


def tensor(content: bytes) -> Tensor:
    """An Array's own description, without its bytes."""
    object_ = expect(content, "Array")
    description = _json(object_, LONGEST_ABOUT)
    try:
        chunks = tuple(object_.children[i] for i in description["arraychunk_ids"])
        shape = tuple(int(n) for n in description["shape"])
        if min((*shape, 0)) < 0:
            raise ValueError
        return Tensor(str(description["dtype"]), shape, str(description["stype"]), chunks)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise PolicyError("message object Array", "is malformed", "refused") from None


def records(root: str, fetch: Fetch) -> dict[str, str]:
    """Names and ids of the records in a message; none where it carries an error."""
    message = expect(fetch(root), "Message")
    if len(message.children) != 1:
        return {}
    return references(fetch(message.children[0]), "RecordDict")


def _json(object_: Object, longest: int = LARGEST) -> dict[str, Any]:
    try:
        value = json.loads(bytes(object_.body)) if len(object_.body) <= longest else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or len(value) > MOST_TENSORS:
        raise PolicyError(f"message object {object_.kind}", "is malformed", "refused")
    return value


# --- sending: objects are made when they are asked for ---------------------------------------------------------------


@dataclass(frozen=True)
class Parcel:
    """A message ready to send: its tree, and a way to make any of its objects again."""

    tree: Tree
    make: Mapping[str, Callable[[], bytes]]

    def contents(self, ids: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """The wanted objects, children before parents."""
        missing = set(ids)
        for id_ in walk(self.tree):
            if id_ in missing:
                missing.remove(id_)
                yield id_, self.make[id_]()


def walk(tree: Tree) -> Iterator[str]:
    for child in tree.children:
        yield from walk(child)
    yield tree.id


@dataclass(frozen=True)
class Part:
    """A tensor's bytes, read when needed."""

    dtype: str
    shape: tuple[int, ...]
    encoding: str
    size: int
    read: Callable[[int, int], bytes]  # start, stop -> bytes


@dataclass(frozen=True)
class Arrays:
    """An ArrayRecord ready to send; the same one may travel in many messages."""

    tree: Tree
    make: Mapping[str, Callable[[], bytes]]


def array_record(parts: Mapping[str, Part]) -> Arrays:
    """An ArrayRecord of tensors by name. Reads all bytes once, for their hashes."""
    make: dict[str, Callable[[], bytes]] = {}
    trees = {name: _array(part, make) for name, part in parts.items()}
    return Arrays(_group("ArrayRecord", trees, make), make)


def parcel(message_body: bytes, config: Mapping[str, bytes], arrays: Mapping[str, Arrays]) -> Parcel:
    """A Message: ConfigRecord bodies and ArrayRecords by the name of the record."""
    make: dict[str, Callable[[], bytes]] = {}
    records: dict[str, Tree] = {}
    for name, body in config.items():
        records[name] = Tree(_add(join("ConfigRecord", (), body), make))
    for name, array in arrays.items():
        records[name] = array.tree
        make |= array.make
    content = _group("RecordDict", records, make)
    return Parcel(Tree(_add(join("Message", (content.id,), message_body), make), (content,)), make)


def _add(content: bytes, make: dict[str, Callable[[], bytes]]) -> str:
    id_ = object_id(content)
    make[id_] = lambda: content
    return id_


def _group(kind: str, trees: Mapping[str, Tree], make: dict[str, Callable[[], bytes]]) -> Tree:
    unique = {tree.id: tree for tree in trees.values()}
    body = json.dumps({name: tree.id for name, tree in trees.items()}).encode()
    return Tree(_add(join(kind, unique, body), make), tuple(unique.values()))


def _array(part: Part, make: dict[str, Callable[[], bytes]]) -> Tree:
    ids: list[str] = []
    for start in range(0, part.size, CHUNK):
        stop = min(start + CHUNK, part.size)

        def chunk(start: int = start, stop: int = stop) -> bytes:
            return join("ArrayChunk", (), part.read(start, stop))

        ids.append(object_id(chunk()))
        make[ids[-1]] = chunk
    unique = list(dict.fromkeys(ids))
    description = {
        "dtype": part.dtype,
        "shape": part.shape,
        "stype": part.encoding,
        "arraychunk_ids": [unique.index(i) for i in ids],
    }
    id_ = _add(join("Array", unique, json.dumps(description).encode()), make)
    return Tree(id_, tuple(Tree(i) for i in unique))
