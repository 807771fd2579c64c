"""Messages in transit lie on disk, not in memory: Flower's object store with files for contents.

Flower cuts a message into a tree of objects of about 5 MiB, named by their SHA-256, and its own store keeps all of them
in memory. Here a request of ours is not stored at all: its objects are made from the checkpoint when a site asks for
them. A reply lies in files until it is read. Names of files are content hashes that were checked before, never anything
a site may choose. After a restart the directory is emptied: every message is asked for again.

What a site announces is never believed further than "these objects will come": a reply is kept as a flat set of names.
Flower's store keeps trees, and would let one site's tree stand where another's message names the same object.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from usfmae.core.errors import PolicyError
from usfmae.core.flower_objects import Fetch
from usfmae.server.flower.node_auth import CALLER
from usfmae.server.flower.pinned import (
    InMemoryObjectStore,
    NoObjectInStoreError,
    ObjectEntry,
    ObjectTree,
    get_object_id,
    is_valid_sha256_hash,
    iterate_object_tree,
    validate_object_content,
)

OBJECTS_LIMIT = 20_000  # objects in one message; an encoder of 150 tensors has about 400

LARGE, SPARE = 2**20, 64  # bytes of a file that is worth keeping when it was delivered, and how many are kept


@dataclass(frozen=True)
class Offer:
    """A message of ours: its tree, and a way to make each of its objects."""

    tree: ObjectTree
    make: Mapping[str, Callable[[], bytes]]


class DiskObjectStore(InMemoryObjectStore):
    """Bookkeeping in memory (a few hundred bytes an object), contents in files or made anew."""

    def __init__(self, directory: Path, reply_limit: int) -> None:
        super().__init__()
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self.directory = directory
        self.reply_limit = reply_limit  # bytes of one reply
        self.offers: dict[str, Offer] = {}  # root of a request -> what a site may fetch of it
        self.replies: dict[str, list[str]] = {}  # root of a reply -> the objects it was announced with
        self.held: Counter[str] = Counter()  # object -> replies that hold it
        self.roots: dict[tuple[bytes, str], str] = {}  # who sends, object of a reply on its way -> the reply's root
        self.spent: dict[str, int] = {}  # root -> bytes received so far
        self.touched: dict[str, float] = {}  # root -> monotonic time of its last object
        self.refused: dict[str, str] = {}  # root -> why no more of it is taken
        self.spare: deque[Path] = deque()  # files that were delivered

    # what goes out

    def offer(self, offer: Offer) -> None:
        """Hold a message of our own ready: whoever asks for an object of it has it made."""
        with self.lock_store:
            self.offers[offer.tree.object_id] = offer

    def get_object_tree(self, object_id: str) -> ObjectTree:
        with self.lock_store:
            if object_id not in self.offers:
                raise NoObjectInStoreError(f"object {object_id} is no request")
            return self.offers[object_id].tree

    def get(self, object_id: str) -> bytes | None:
        """An object of a request. None for any other: what one site sends, no other site may fetch."""
        with self.lock_store:
            make = next((o.make[object_id] for o in self.offers.values() if object_id in o.make), None)
        return make() if make else None

    # what is on its way

    def preregister(self, run_id: int, object_tree: ObjectTree) -> list[str]:
        """Names of the objects still missing. A reply that says it has too many is not taken at all."""
        root = object_tree.object_id
        with self.lock_store:
            self.touched[root] = time.monotonic()
            if root not in self.replies:  # a continued upload keeps the list of objects it began with
                names = self._names(object_tree)
                if names is None:
                    self.refused[root] = f"more than {OBJECTS_LIMIT} objects"
                    return []
                self._hold(run_id, root, names)
            missing = [name for name in self.replies[root] if not self.store[name].is_available]
            self.roots.update({(CALLER.get(), name): root for name in missing})
            return missing

    def _names(self, tree: ObjectTree) -> list[str] | None:
        names: dict[str, None] = {}
        for count, node in enumerate(iterate_object_tree(tree)):
            if count >= OBJECTS_LIMIT:
                return None
            if not is_valid_sha256_hash(node.object_id):
                raise ValueError(f"object name {node.object_id!r:.80} is no SHA-256")
            names[node.object_id] = None
        return list(names)

    def _hold(self, run_id: int, root: str, names: list[str]) -> None:
        self.replies[root], self.spent[root] = names, 0
        self.held.update(names)
        for name in names:
            if name not in self.store:
                self.store[name] = ObjectEntry(b"", False, [], 0, {run_id})

    def put(self, object_id: str, object_content: bytes) -> None:
        """Store one object. ValueError where it is not what it says, or its message grows beyond the limit.

        It counts for the message in which this caller announced it: another one's may name the same object.
        """
        if get_object_id(object_content) != object_id:
            raise ValueError(f"object {object_id} does not match its content")
        validate_object_content(content=object_content)
        with self.lock_store:
            if object_id not in self.store or (CALLER.get(), object_id) not in self.roots:
                raise NoObjectInStoreError(f"object {object_id} was not announced")
            if self.store[object_id].is_available:
                return
            self._charge(object_id, len(object_content))
        try:
            self._write(self.directory / object_id, object_content)
        except OSError:  # a full disk: what was not kept does not count
            self._charge(object_id, -len(object_content))
            (self.directory / object_id).unlink(missing_ok=True)
            raise
        with self.lock_store:
            if object_id in self.store:
                self.store[object_id].is_available = True
            else:
                (self.directory / object_id).unlink(missing_ok=True)

    def _write(self, file: Path, content: bytes) -> None:
        """Over a file that was delivered, where there is one: pages in memory cost a fraction of new ones."""
        spare = self.spare.pop() if len(content) >= LARGE and self.spare else None
        if spare:
            spare.replace(file)
        with file.open("r+b" if spare else "wb") as stream:
            stream.write(content)
            stream.truncate()

    def _remove(self, name: str) -> None:
        file = self.directory / name
        if len(self.spare) < SPARE and file.exists() and file.stat().st_size >= LARGE:
            self.spare.append(file.replace(self.directory / f"spare-{time.monotonic_ns()}"))
        file.unlink(missing_ok=True)

    def _charge(self, object_id: str, size: int) -> None:
        root = self.roots.get((CALLER.get(), object_id))
        if root is None:  # its message was forgotten meanwhile
            return
        self.touched[root] = time.monotonic()
        if root in self.refused or self.spent[root] + size > self.reply_limit:
            self.refused.setdefault(root, f"larger than {self.reply_limit} bytes")
            raise ValueError(f"reply {root} is {self.refused[root]}")
        self.spent[root] += size

    # what is there

    def complete(self, root: str) -> bool:
        """Whether every object of a reply has arrived."""
        with self.lock_store:
            names = self.replies.get(root)
            return names is not None and all(self.store[name].is_available for name in names)

    def fetcher(self, root: str) -> Fetch:
        """Reads objects of a complete reply and no others; PolicyError for one that its tree did not announce."""
        with self.lock_store:
            names = frozenset(self.replies[root])

        def fetch(object_id: str) -> bytes:
            if object_id not in names:
                raise PolicyError(f"message object {object_id:.12}", "is no part of its message", "refused")
            try:
                return (self.directory / object_id).read_bytes()
            except FileNotFoundError:
                raise PolicyError(f"message object {object_id:.12}", "is not here any more", "refused") from None

        return fetch

    def silent_for(self, root: str) -> float:
        """Seconds since the last object of this reply came; infinite for one that was forgotten."""
        return time.monotonic() - self.touched.get(root, -math.inf)

    # what is done with

    def delete(self, object_id: str) -> None:
        """Forget a message; objects of a reply stay as long as another reply holds them."""
        with self.lock_store:
            self.offers.pop(object_id, None)
            for name in self.replies.pop(object_id, ()):
                self.held[name] -= 1
                if self.held[name] <= 0:
                    del self.held[name], self.store[name]
                    self._remove(name)
            self.roots = {message: root for message, root in self.roots.items() if root != object_id}
            for book in (self.spent, self.touched, self.refused):
                book.pop(object_id, None)
