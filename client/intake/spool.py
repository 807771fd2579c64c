"""Where instances that came over the network lie until they are cleaned: files in the site's own directory.

A file gets its name when it is complete, and the sender hears "stored" when it is on disk: neither a killed process
nor a power cut loses what was acknowledged. Those who wait at the same time share one commit. A file's name is an HMAC of its bytes: no UID on disk, and the same instance sent twice is one file.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import itertools
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from usfmae.core.errors import ResourceError
from usfmae.core.files import flush_disk
from usfmae.core.types import secret_id

SPOOL = "spool"  # folder of a site's directory; `prepare` reads it like any source
PARTIAL = "spool.partial"  # beside it: files being written, which `prepare` must not see
CLEANED = "spool.cleaned"  # beside it: what was cleaned and is kept for a while, for the page to show
NAME_DIGITS = 32
SHORT = 1 << 16  # bytes held back before a file is written
LARGEST = 4 * 10**9  # bytes of one instance, unless `intake.max_instance_gb` says otherwise


class TooLargeError(ResourceError):
    """One instance beyond the limit: to send it again would not help."""


@dataclass
class _Flushes:
    """Whose files are on disk: each caller gets a number, a flush covers all numbers given out before it began."""

    numbered: int = 0
    covered: int = 0
    failed: int = 0  # highest number that a failed flush covered: its files may be lost though a later flush succeeds
    error: OSError | None = None
    counting: threading.Lock = field(default_factory=threading.Lock)
    flushing: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Spool:
    """`add` is safe from many threads."""

    directory: Path
    secret: bytes
    floor_bytes: int = 0  # intake stops while less than this is free
    largest_bytes: int = LARGEST
    partial: Path = field(init=False)
    _counter: Iterator[int] = field(default_factory=itertools.count)
    _flushes: _Flushes = field(default_factory=_Flushes)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.directory = self.directory.resolve()  # as the files that `prepare` has read are named
        self.partial = self.directory.with_name(PARTIAL)
        self.partial.mkdir(exist_ok=True, mode=0o700)

    def sweep(self) -> None:
        """Remove what a killed process left half written; its sender never heard "stored". For the one agent alone."""
        for left in self.partial.iterdir():
            left.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        disk = os.statvfs(self.directory)
        return disk.f_bavail * disk.f_frsize

    def check_room(self, needed: int = 0) -> None:
        """ResourceError where `needed` more bytes would go below the floor."""
        free = self.free_bytes()
        if free - needed < self.floor_bytes:
            raise ResourceError(
                f"spool {self.directory}",
                f"{free / 1e9:.1f} GB free, the floor is {self.floor_bytes / 1e9:.1f} GB",
                "free some space; senders are told to come again",
            )

    def incoming(self) -> Incoming:
        """A file to receive into. ResourceError below the disk floor."""
        self.check_room()
        return Incoming(self, f"{self.partial}/{os.getpid()}-{next(self._counter)}")

    def add(self, content: bytes) -> bool:
        """Keep one DICOM file, on disk; False where the same bytes lie there already. ResourceError on a full disk."""
        file = self.incoming()
        file.write(content)
        new = file.keep()
        self.settle()
        return new

    def settle(self) -> None:
        """All that was kept so far is on disk. ResourceError where the disk fails.

        Threads that wait while another one flushes share the next flush.
        """
        state = self._flushes
        with state.counting:
            state.numbered += 1
            mine = state.numbered
        with state.flushing:
            if state.covered < mine:
                covers = state.numbered
                try:
                    flush_disk(self.directory)
                except OSError as error:
                    state.failed, state.error = covers, error
                state.covered = covers
            if mine <= state.failed and state.error is not None:
                raise self.failed(state.error) from None

    def failed(self, error: OSError) -> ResourceError:
        return ResourceError(f"spool {self.directory}", error.strerror or str(error), "free some space")

    def files(self) -> list[Path]:
        """Complete files, sorted: what a preparation that starts now will read."""
        return sorted(self.directory.glob("[0-9a-f][0-9a-f]/*.dcm"))

    def drop(self, files: Iterable[Path], keep: bool = False) -> int:
        """Delete files that are in the corpus (or refused by rule) now, or set them aside; only files of this spool."""
        count = 0
        for file in files:
            if file.resolve().parent.parent == self.directory and file.suffix == ".dcm" and file.exists():
                if keep:
                    aside = cleaned(self.directory, file.stem)
                    aside.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                    file.rename(aside)
                else:
                    file.unlink()
                count += 1
        return count

    def expire(self, days: float) -> int:
        """Delete what was set aside and came more than so many days ago; all of it where the floor is near."""
        near = self.free_bytes() < 2 * self.floor_bytes
        oldest = time.time() - days * 86400
        old = [file for file in self.directory.with_name(CLEANED).glob("*/*.dcm") if near or _came(file) < oldest]
        for file in old:
            file.unlink(missing_ok=True)
        return len(old)


def cleaned(spool: Path, scan: str) -> Path:
    """Where a scan that came over the network lies once it is cleaned: its name is the beginning of the scan's id."""
    name = scan[:NAME_DIGITS]
    return spool.with_name(CLEANED) / name[:2] / f"{name}.dcm"


def _came(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


class Incoming:
    """A file that is being received; it has no name in the spool before `keep`.

    What is short is written at once when it is complete: calls to the system are what a small instance costs.
    """

    def __init__(self, spool: Spool, path: str) -> None:
        self.spool, self.path = spool, path
        self.digest = hashlib.sha256()
        self.held = bytearray()
        self.handle = -1
        self.size = 0

    def write(self, content: bytes | memoryview) -> None:
        """ResourceError, and the file is gone, where the disk has no room for it or it is too large."""
        self.size += len(content)
        if self.size > self.spool.largest_bytes:
            self.discard()
            why = f"larger than {self.spool.largest_bytes / 1e9:g} GB"
            raise TooLargeError(f"instance for spool {self.spool.directory}", why, "raise intake.max_instance_gb")
        self.digest.update(content)
        if len(self.held) + len(content) > SHORT:
            self._out(self.held)
            self.held.clear()
        if len(content) > SHORT:
            self._out(content)
        else:
            self.held += content

    def _out(self, content: bytes | bytearray | memoryview) -> None:
        try:
            self.spool.check_room(len(content))
            if self.handle < 0:
                self.handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with memoryview(content) as rest:
                written = 0
                while written < len(rest):
                    written += os.write(self.handle, rest[written:])
        except (OSError, ResourceError) as error:
            self.discard()
            raise self.spool.failed(error) if isinstance(error, OSError) else error from None

    def keep(self) -> bool:
        """Give it its name; False where the same bytes lie there already. ResourceError as in `write`."""
        name = secret_id(self.spool.secret, "scan", self.digest.digest())[:NAME_DIGITS]
        self._out(self.held)
        try:
            self._close()  # on a network file system a full disk is noticed here
            target = f"{self.spool.directory}/{name[:2]}/{name}.dcm"
            if _same(self.path, target):
                Path(self.path).unlink()
                return False
            self._rename(target)
        except OSError as error:
            self.discard()
            raise self.spool.failed(error) from None
        return True

    def _rename(self, target: str) -> None:
        try:
            os.rename(self.path, target)  # noqa: PTH104 - a Path takes longer to make than the file to rename
        except FileNotFoundError:  # the first of its folder, or somebody tidied up
            Path(target).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.rename(self.path, target)  # noqa: PTH104

    def discard(self) -> None:
        """Forget it. Also after a failure, and twice."""
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            Path(self.path).unlink()

    def _close(self) -> None:
        handle, self.handle = self.handle, -1
        if handle >= 0:
            os.close(handle)


def _same(received: str, target: str) -> bool:
    """Whether these bytes lie there; a power cut may have left the name with other ones."""
    return Path(target).exists() and filecmp.cmp(received, target, shallow=False)
