"""The bytes of a scan: a file, or a member of a zip archive. Opened for reading only, never extracted to disk."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from usfmae.core.archive import opened as archive_at
from usfmae.core.config.read import ReadSettings
from usfmae.core.read.refusal_codes import Unreadable, guarded
from usfmae.core.types import Scan

ENCRYPTED = 1  # bit 0 of a member's flags (APPNOTE 4.4.4)


def read_member(archive: Path, member: str, settings: ReadSettings) -> bytes:
    """A member's content, with the declared and the real size both held under the limit. Raises Unreadable."""
    limit = int(settings.max_member_mb * 1e6)
    with guarded("bad-archive"):
        content = archive_at(archive)
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
    with scan.path.open("rb") as file:
        yield file


@contextmanager
def as_path(scan: Scan, settings: ReadSettings) -> Iterator[str]:
    """A path for libraries that take nothing else; members live in anonymous memory, not in a temporary file."""
    if not scan.member:
        yield str(scan.path.absolute())
        return
    with in_memory(read_member(scan.path, scan.member, settings)) as path:
        yield path


@contextmanager
def in_memory(data: bytes) -> Iterator[str]:
    """A path to bytes in anonymous memory: no temporary file, gone when the process is."""
    descriptor = os.memfd_create("scan")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
