"""Writing files so that a reader, also after a crash or a power cut, sees the old file or the whole new one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from usfmae.core.errors import ResourceError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a partial file's path to write to; on success it is flushed to disk and takes the place of `path`.

    Raises ResourceError where the disk is full; the old file is then untouched.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with full_disk_said(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            flush(partial)
            partial.replace(path)
            flush(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def rewriting(path: Path, spent: Path | None) -> Iterator[BinaryIO]:
    """As `replacing`, opened: written over `spent`, a large file that nobody needs any more, where there is one.

    Pages that are in memory already cost a fraction of new ones. Who writes cuts the file to its length.
    """
    with replacing(path) as partial:
        if spent is not None and spent.exists():
            spent.replace(partial)
        with partial.open("r+b" if partial.exists() else "wb") as file:
            yield file


def copy_atomic(source: Path, path: Path) -> None:
    """Replace `path` by a copy of `source`, whatever its size: the system copies, nothing of it comes into memory."""
    with replacing(path) as partial:
        shutil.copyfile(source, partial)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`. Raises ResourceError where the disk is full."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def append_line(path: Path, line: str) -> None:
    """Add a line to a log. Raises ResourceError where the disk is full."""
    with full_disk_said(path), path.open("a") as file:
        file.write(line + "\n")


@contextlib.contextmanager
def full_disk_said(path: Path) -> Iterator[None]:
    """ResourceError in place of what the operating system or a library says when the disk of `path` is full."""
    try:
        yield
    except BaseException as error:
        if _is_full(error):
            raise disk_full(path) from None
        raise


def disk_full(path: Path) -> ResourceError:
    return ResourceError(f"disk of {path.parent}", "is full", "free space and run the same again")


def _is_full(error: BaseException | None) -> bool:
    """Libraries wrap the operating system's error: its text remains, or it is the context of theirs."""
    if error is None:
        return False
    full = getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    return full or _is_full(error.__context__)


def put(partial: Path, target: Path) -> None:
    """A file that is whole takes its name, on disk before and after: for what `replacing` cannot hold in one block."""
    flush(partial)
    partial.replace(target)
    flush(target.parent)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False, shared: bool = False) -> Iterator[bool]:
    """Hold the lock of the file at `path`, which is made, while the block runs; False where another process holds it.

    The system takes it back when the process ends, however it ends. Raises OSError where the file cannot be opened.
    """
    with path.open("ab") as file:
        yield hold(file, wait=wait, shared=shared)


def hold(file: IO[Any], *, wait: bool = False, shared: bool = False) -> bool:
    """Lock an open file until it is closed; False where another process holds it and we do not `wait`."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock of this file."""
    try:
        with path.open("rb") as file:
            return not hold(file)
    except OSError:
        return False


@functools.cache
def this_boot() -> str:
    """A name for the time since the machine was started: what was only written, not flushed, is trusted within it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # trusted within this process alone
        return f"process-{os.getpid()}"


def flush(path: Path) -> None:
    """A file's bytes, or a folder's names, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_disk(folder: Path) -> None:
    """All that was written to the file system of `folder`, on disk: one commit for any number of files (syncfs(2))."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        if _libc.syncfs(handle):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(handle)


_libc = ctypes.CDLL(None, use_errno=True)
