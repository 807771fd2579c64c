"""Messages in transit lie on disk, not in memory: Flower's object store with files for contents.

Flower cuts a message into a tree of objects of about 5 MiB, named by their SHA-256. Its own in-memory store keeps all
of them until the reply is read; with this one the aggregator's memory does not grow with the number of sites. Names
of files are content hashes that were checked before, never anything a site may choose. After a restart the directory is
emptied: every message is asked for again.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_id, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

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
        self.roots: dict[str, str] = {}  # object of a reply on its way -> its root
        self.spent: dict[str, int] = {}  # root -> bytes received so far
        self.touched: dict[str, float] = {}  # root -> monotonic time of its last object
        self.refused: dict[str, str] = {}  # root -> why no more of it is taken

    def preregister(self, run_id: int, object_tree: ObjectTree) -> list[str]:
        """Names of the objects still missing. A reply that says it has too many is not taken at all."""
        root = object_tree.object_id
        if root in self.trusted:
            return super().preregister(run_id, object_tree)
        count = sum(1 for _, _ in zip(iterate_object_tree(object_tree), range(OBJECTS_LIMIT + 1), strict=False))
        with self.lock_store:
            self.touched[root] = time.monotonic()
            if count > OBJECTS_LIMIT:
                self.refused[root] = f"more than {OBJECTS_LIMIT} objects"
                return []
            missing = super().preregister(run_id, object_tree)
            self.spent.setdefault(root, 0)
            self.roots.update(dict.fromkeys(missing, root))
        return missing

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
        (self.directory / object_id).write_bytes(object_content)
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

    def delete(self, object_id: str) -> None:
        with self.lock_store:
            super().delete(object_id)
            if object_id not in self.store:
                (self.directory / object_id).unlink(missing_ok=True)
                self.roots.pop(object_id, None)
                for book in (self.spent, self.touched, self.refused):
                    book.pop(object_id, None)
                self.trusted.discard(object_id)

    def complete(self, root: str) -> bool:
        """Whether every object of a message has arrived."""
        with self.lock_store:
            waiting = [root]
            while waiting:
                entry = self.store.get(waiting.pop())
                if entry is None or not entry.is_available:
                    return False
                waiting += entry.child_object_ids
        return True

    def silent_for(self, root: str) -> float:
        """Seconds since the last object of this reply came."""
        return time.monotonic() - self.touched.get(root, time.monotonic())
