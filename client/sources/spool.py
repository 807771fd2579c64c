"""Where instances that came over the network lie until they are cleaned: files in the site's own directory.

A file is complete and on disk before the sender hears "stored", so a killed process loses nothing. Its name is an
HMAC of its bytes: no UID on disk, and the same instance sent twice is one file.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from usfmae.core.errors import ResourceError
from usfmae.core.flow import secret_id

SPOOL = "spool"  # folder of a site's directory; `prepare` reads it like any source
PARTIAL = "spool.partial"  # beside it: files being written, which `prepare` must not see
NAME_DIGITS = 32


@dataclass
class Spool:
    """`add` is safe from many threads."""

    directory: Path
    secret: bytes
    floor_bytes: int = 0  # intake stops while less than this is free
    partial: Path = field(init=False)
    _made: set[Path] = field(default_factory=set)
    _counter: Iterator[int] = field(default_factory=lambda: iter(range(1 << 62)))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.partial = self.directory.with_name(PARTIAL)
        self.partial.mkdir(exist_ok=True, mode=0o700)

    def sweep(self) -> None:
        """Remove what a killed process left half written; its sender never heard "stored". For the one agent alone."""
        for left in self.partial.iterdir():
            left.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.directory).free

    def check_room(self, needed: int = 0) -> None:
        """ResourceError where `needed` more bytes would go below the floor."""
        free = self.free_bytes()
        if free - needed < self.floor_bytes:
            raise ResourceError(
                f"spool {self.directory}",
                f"{free / 1e9:.1f} GB free, the floor is {self.floor_bytes / 1e9:.1f} GB",
                "free some space; senders are told to come again",
            )

    def add(self, content: bytes) -> bool:
        """Keep one DICOM file, durably; False where the same bytes lie there already."""
        self.check_room(len(content))
        name = secret_id(self.secret, content)[:NAME_DIGITS]
        target = self._folder(name[:2]) / f"{name}.dcm"
        if target.exists():
            return False
        with self._lock:
            partial = self.partial / f"{os.getpid()}-{next(self._counter)}"
        try:
            _write_durably(partial, target, content)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise ResourceError(f"spool {self.directory}", error.strerror or str(error), "free some space") from None
        return True

    def _folder(self, prefix: str) -> Path:
        folder = self.directory / prefix
        with self._lock:
            if folder not in self._made:
                folder.mkdir(exist_ok=True, mode=0o700)
                _sync_folder(self.directory)
                self._made.add(folder)
        return folder

    def files(self) -> list[Path]:
        """Complete files, sorted: what a preparation that starts now will read."""
        return sorted(self.directory.glob("[0-9a-f][0-9a-f]/*.dcm"))

    def drop(self, files: Iterable[Path]) -> int:
        """Delete files that are in the corpus (or refused by rule) now; only files of this spool."""
        count = 0
        for file in files:
            if file.parent.parent == self.directory and file.suffix == ".dcm" and file.exists():
                file.unlink()
                count += 1
        return count


def _write_durably(partial: Path, target: Path, content: bytes) -> None:
    """Bytes on disk before the name is; the name on disk before we return."""
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
