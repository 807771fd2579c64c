"""The bytes of a scan: a file, or a member of a zip archive. Opened for reading only, never extracted to disk.

Every file is opened by one function, `open_file`; a process that may open nothing itself is given another.
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from usfmae.core.config.read import ReadSettings
from usfmae.core.read.facts import Unreadable, guarded
from usfmae.core.types import Scan

ENCRYPTED = 1  # bit 0 of a member's flags (APPNOTE 4.4.4)


def open_file(path: Path, data_file: str = "") -> int:
    """A descriptor of the file at `path`, or of the one of that plain name in the same folder. Raises OSError.

    A file beside another must be a regular one: no link, no device, no pipe.
    """
    if not data_file:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if "/" in data_file or data_file in ("", ".", ".."):
        raise ValueError("no plain name")
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(data_file, flags, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("no regular file")
    return descriptor


_opener: Callable[[Path, str], int] = open_file


def open_through(opener: Callable[[Path, str], int]) -> None:
    """From now on this process opens scans by `opener(path, data_file)`, which returns a descriptor."""
    global _opener
    _opener = opener


def name_of(scan: Scan) -> str:
    """The scan's own file name, without a folder."""
    return posixpath.basename(scan.member) if scan.member else scan.path.name


def read_member(path: Path, member: str, settings: ReadSettings) -> bytes:
    """A member's content, with the declared and the real size both held under the limit. Raises Unreadable."""
    limit = int(settings.max_member_mb * 1e6)
    with guarded("bad-archive"):
        content = archive_at(_opener(path, ""))
        if content.getinfo(member).flag_bits & ENCRYPTED:
            raise Unreadable("encrypted-archive", "the member is encrypted")
        with content.open(member) as file:
            data = file.read(limit + 1)
    if len(data) > limit:
        raise Unreadable("too-large", f"the member exceeds {settings.max_member_mb:g} MB")
    return data


@contextmanager
def opened(scan: Scan, settings: ReadSettings) -> Iterator[BinaryIO]:
    """A seekable binary file of the scan's bytes."""
    if scan.member:
        yield io.BytesIO(read_member(scan.path, scan.member, settings))
        return
    with os.fdopen(_opener(scan.path, ""), "rb") as file:
        yield file


@contextmanager
def opened_data_file(scan: Scan, name: str, settings: ReadSettings) -> Iterator[BinaryIO]:
    """The file of a plain `name` in the scan's own folder, of the disk or of the archive. Raises Unreadable."""
    if scan.member:
        try:
            data = read_member(scan.path, posixpath.join(posixpath.dirname(scan.member), name), settings)
        except Unreadable as error:
            raise Unreadable("no-data-file" if error.why == "KeyError" else error.reason, error.why) from None
        yield io.BytesIO(data)
        return
    try:
        descriptor = _opener(scan.path, name)
    except (OSError, ValueError) as error:  # absent, a link, a folder: the header is at fault, not the disk
        raise Unreadable("no-data-file", type(error).__name__) from None
    with os.fdopen(descriptor, "rb") as file:
        yield file


@contextmanager
def descriptor_of(scan: Scan, settings: ReadSettings) -> Iterator[int]:
    """A descriptor for libraries that take no Python file; members lie in anonymous memory, not in a temporary file."""
    if scan.member:
        with in_memory(read_member(scan.path, scan.member, settings)) as descriptor:
            yield descriptor
        return
    descriptor = _opener(scan.path, "")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def in_memory(data: bytes) -> Iterator[int]:
    """A descriptor of bytes in anonymous memory: no temporary file, gone when the process is."""
    descriptor = os.memfd_create("scan")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        yield descriptor
    finally:
        os.close(descriptor)


def copied(descriptor: int, size: int) -> int:
    """A descriptor of the first `size` bytes of another, in anonymous memory; to be closed."""
    copy, offset = os.memfd_create("scan", 0), 0  # without MFD_CLOEXEC: a program may be given it
    while offset < size and (sent := os.sendfile(copy, descriptor, offset, size - offset)):
        offset += sent
    return copy


OPEN = 4  # archives

# (process, device, inode, size, time in ns) -> archive. A changed file is opened anew, and a forked process opens its
# own: a shared file has one position.
_archives: OrderedDict[tuple[int, ...], zipfile.ZipFile] = OrderedDict()


def archive_opened(path: Path) -> zipfile.ZipFile:
    """The archive at `path`, for reading members; not to be closed. Raises OSError, BadZipFile."""
    return archive_at(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def archive_at(descriptor: int) -> zipfile.ZipFile:
    """The archive behind a descriptor, which is taken over. Raises OSError, BadZipFile."""
    file = os.fdopen(descriptor, "rb")
    status = os.fstat(descriptor)
    key = (os.getpid(), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if key in _archives:
        file.close()
    else:
        try:
            _archives[key] = zipfile.ZipFile(file)
        except Exception:
            file.close()
            raise
    _archives.move_to_end(key)
    while len(_archives) > OPEN:
        _archives.popitem(last=False)
    return _archives[key]
