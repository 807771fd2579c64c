"""Messages in transit lie on disk, not in memory: Flower's object store with files for contents.

Flower cuts a message into a tree of objects of about 5 MiB, named by their SHA-256. Its own in-memory store keeps all
of them until the reply is read; with this one the aggregator's memory does not grow with the number of sites. Names
of files are content hashes that were checked before, never anything a site may choose. After a restart the directory is
emptied: every message is asked for again.

What a site announces is never believed further than "these objects will come": a reply is kept as a flat set of names.
Flower's store keeps trees, and would let one site's tree stand where another's message names the same object.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_id, is_valid_sha256_hash, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore, ObjectEntry

OBJECTS_LIMIT = 20_000  # objects in one message; an encoder of 150 tensors has about 400


class TransitStore(InMemoryObjectStore):
    """Bookkeeping in memory (a few hundred bytes an object), contents in files."""

    def __init__(self, directory: Path, reply_limit: int) -> None:
        super().__init__()
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self.directory = directory
        self.reply_limit = reply_limit  # bytes of one reply
        self.trusted: set[str] = set()  # roots of our own messages: no limit
        self.replies: dict[str, list[str]] = {}  # root of a reply -> the objects it was announced with
        self.held: Counter[str] = Counter()  # object -> replies that hold it
        self.flat: set[str] = set()  # objects that replies alone hold
        self.roots: dict[str, str] = {}  # object of a reply on its way -> its root
        self.spent: dict[str, int] = {}  # root -> bytes received so far
        self.touched: dict[str, float] = {}  # root -> monotonic time of its last object
        self.refused: dict[str, str] = {}  # root -> why no more of it is taken

    # what is on its way

    def preregister(self, run_id: int, object_tree: ObjectTree) -> list[str]:
        """Names of the objects still missing. A reply that says it has too many is not taken at all."""
        with self.lock_store:
            if object_tree.object_id in self.trusted:
                return self._ours(run_id, object_tree)
            return self._theirs(run_id, object_tree)

    def _ours(self, run_id: int, tree: ObjectTree) -> list[str]:
        """One of our messages, as Flower keeps it; what a reply holds of it as well gets its place in our tree."""
        shared = {node.object_id for node in iterate_object_tree(tree)} & self.flat
        before = {name: self.store.pop(name).is_available for name in shared}
        missing = super().preregister(run_id, tree)
        for name, available in before.items():
            self.store[name].is_available = available
        self.flat -= shared
        return [name for name in missing if not self.store[name].is_available]

    def _theirs(self, run_id: int, tree: ObjectTree) -> list[str]:
        root = tree.object_id
        self.touched[root] = time.monotonic()
        if root not in self.replies:  # an upload that goes on names what it named before, whatever its tree says now
            names: dict[str, None] = {}
            for count, node in enumerate(iterate_object_tree(tree)):
                if count >= OBJECTS_LIMIT:
                    self.refused[root] = f"more than {OBJECTS_LIMIT} objects"
                    return []
                if not is_valid_sha256_hash(node.object_id):
                    raise ValueError(f"object name {node.object_id!r:.80} is no SHA-256")
                names[node.object_id] = None
            self._hold(run_id, root, list(names))
        missing = [name for name in self.replies[root] if not self.store[name].is_available]
        self.roots.update(dict.fromkeys(missing, root))
        return missing

    def _hold(self, run_id: int, root: str, names: list[str]) -> None:
        self.replies[root], self.spent[root] = names, 0
        self.held.update(names)
        for name in names:
            if name not in self.store:
                self.store[name] = ObjectEntry(b"", False, [], 0, {run_id})
                self.flat.add(name)

    def put(self, object_id: str, object_content: bytes) -> None:
        """Store one object. ValueError where it is not what it says, or its message grows beyond the limit."""
        if get_object_id(object_content) != object_id:
            raise ValueError(f"object {object_id} does not match its content")
        validate_object_content(content=object_content)
        with self.lock_store:
            if object_id not in self.store:
                raise NoObjectInStoreError(f"object {object_id} was not announced")
            if self.store[object_id].is_available:
                return
            self._charge(object_id, len(object_content))
        try:
            (self.directory / object_id).write_bytes(object_content)
        except OSError:  # a full disk: what was not kept does not count
            self._charge(object_id, -len(object_content))
            (self.directory / object_id).unlink(missing_ok=True)
            raise
        with self.lock_store:
            if object_id in self.store:
                self.store[object_id].is_available = True
            else:
                (self.directory / object_id).unlink(missing_ok=True)

    def _charge(self, object_id: str, size: int) -> None:
        root = self.roots.get(object_id)
        if root is None:
            return
        self.touched[root] = time.monotonic()
        if root in self.refused or self.spent[root] + size > self.reply_limit:
            self.refused.setdefault(root, f"larger than {self.reply_limit} bytes")
            raise ValueError(f"reply {root} is {self.refused[root]}")
        self.spent[root] += size

    # what is there

    def get(self, object_id: str) -> bytes | None:
        with self.lock_store:
            entry = self.store.get(object_id)
            if entry is None:
                return None
            if not entry.is_available:
                return b""
        try:
            return (self.directory / object_id).read_bytes()
        except FileNotFoundError:
            return None

    def complete(self, root: str) -> bool:
        """Whether every object of a message has arrived."""
        with self.lock_store:
            waiting = list(self.replies.get(root, [root]))
            seen = set(waiting)
            while waiting:
                entry = self.store.get(waiting.pop())
                if entry is None or not entry.is_available:
                    return False
                waiting += set(entry.child_object_ids) - seen
                seen.update(entry.child_object_ids)
        return True

    def reply(self, root: str) -> dict[str, bytes]:
        """The objects of a complete reply. ValueError where its arrays stand for more bytes than a reply may hold."""
        contents = {name: self.get(name) or b"" for name in self.replies[root]}
        if unfolded(contents) > self.reply_limit:
            raise ValueError(f"unfolds to more than {self.reply_limit} bytes")
        return contents

    def silent_for(self, root: str) -> float:
        """Seconds since the last object of this reply came."""
        return time.monotonic() - self.touched.get(root, time.monotonic())

    # what is done with

    def delete(self, object_id: str) -> None:
        with self.lock_store:
            if object_id in self.replies:
                self._let_go(object_id)
            elif object_id in self.store and self.held[object_id] and object_id not in self.flat:
                self._lend(object_id)
            elif object_id not in self.flat:
                super().delete(object_id)
                self._remove_file(object_id)
            for book in (self.spent, self.touched, self.refused):
                book.pop(object_id, None)
            self.trusted.discard(object_id)

    def _let_go(self, root: str) -> None:
        """A reply is done with; its objects go unless another message needs them."""
        for name in self.replies.pop(root):
            self.held[name] -= 1
            if self.held[name] <= 0:
                del self.held[name]
                self.roots.pop(name, None)
                if name in self.flat:
                    self.flat.remove(name)
                    del self.store[name]
                    self._remove_file(name)

    def _lend(self, object_id: str) -> None:
        """Our message is done with, but a reply holds this object of it: it stays, without its place in our tree."""
        entry = self.store[object_id]
        if entry.ref_count == 0:
            children, entry.child_object_ids = entry.child_object_ids, []
            self.flat.add(object_id)
            for child in children:
                self.store[child].ref_count -= 1
                self.delete(child)

    def _remove_file(self, object_id: str) -> None:
        if object_id not in self.store:
            (self.directory / object_id).unlink(missing_ok=True)


def unfolded(contents: Mapping[str, bytes]) -> int:
    """Bytes that the arrays among these objects stand for: an array may name one chunk of 5 MiB a million times."""
    total = 0
    for content in contents.values():
        if content.startswith(b"Array "):
            head, _, body = content.partition(b"\0")
            chunks = head.split(b" ")[1].decode().split(",")
            sizes = [len(contents[name]) for name in chunks]
            total += sum(sizes[i] for i in json.loads(body)["arraychunk_ids"])
    return total
