"""Where instances that came over the network lie until they are cleaned: files in the site's own directory.

A file is complete and on disk before the sender hears "stored", so neither a killed process nor a power cut loses
anything. Its name is an HMAC of its bytes: no UID on disk, and the same instance sent twice is one file.

What costs is the disk's flush, not Python: file and folder are flushed at the same time, which the file system turns
into one commit, and so are the files of associations that send at the same time (benchmarks/intake.py).
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from usfmae.core.errors import ResourceError
from usfmae.core.files import flush
from usfmae.core.flow import secret_id

SPOOL = "spool"  # folder of a site's directory; `prepare` reads it like any source
PARTIAL = "spool.partial"  # beside it: files being written, which `prepare` must not see
NAME_DIGITS = 32
FLUSHES = 32  # folders flushed at the same time


@dataclass
class Spool:
    """`add` is safe from many threads."""

    directory: Path
    secret: bytes
    floor_bytes: int = 0  # intake stops while less than this is free
    partial: Path = field(init=False)
    _made: set[Path] = field(default_factory=set)
    _flushing: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(FLUSHES, "spool"))
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
        target = self.directory / name[:2] / f"{name}.dcm"
        repeated = _holds(target, content)
        with self._lock:
            partial = self.partial / f"{os.getpid()}-{next(self._counter)}"
        try:
            if not repeated:
                self._make(target.parent)
                _write(partial, content)
                partial.rename(target)
            self._flush(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            if not repeated:
                target.unlink(missing_ok=True)  # after a failed flush nobody knows what the disk holds
            raise ResourceError(f"spool {self.directory}", error.strerror or str(error), "free some space") from None
        return not repeated

    def _flush(self, file: Path) -> None:
        """The file's bytes and its name on disk."""
        folder = self._flushing.submit(flush, file.parent)
        try:
            flush(file)
        finally:
            folder.result()

    def _make(self, folder: Path) -> None:
        with self._lock:
            if folder not in self._made:
                folder.mkdir(exist_ok=True, mode=0o700)
                flush(self.directory)
                self._made.add(folder)

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


def _holds(target: Path, content: bytes) -> bool:
    """Whether these bytes lie there; a power cut may have left the name with other ones, which nobody acknowledged."""
    try:
        return target.read_bytes() == content
    except FileNotFoundError:
        return False


def _write(partial: Path, content: bytes) -> None:
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
