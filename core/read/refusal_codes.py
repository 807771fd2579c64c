"""Why a scan is not read: by rule (refused) or because it cannot be (unreadable). Each carries a short code.

The code goes into ledgers and reports, so it never holds anything out of the file.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from usfmae.core.errors import SourceError, UsfmaeError

# The operating system's errors that say nothing about the file's content: these scans are tried again.
ACCESS = {
    getattr(errno, name)
    for name in (
        "EACCES", "EPERM", "ENOENT", "EIO", "ESTALE", "ETIMEDOUT", "ENODEV", "ENXIO", "EMFILE", "ENFILE", "EBUSY",
        "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ECONNRESET", "ENOTCONN", "EAGAIN", "EINTR",
    )
}  # fmt: skip


class Unreadable(SourceError):  # noqa: N818
    """The scan is damaged, hostile or too large: it goes to quarantine under `reason`."""

    def __init__(self, reason: str, why: str = "") -> None:
        self.reason = reason
        super().__init__(f"scan: {reason}", why, "see it inside the hospital, mend or drop it")


class RefusedScan(SourceError):  # noqa: N818
    """A rule excludes the scan (a report, another modality): refused under `reason`."""

    def __init__(self, reason: str, why: str = "") -> None:
        self.reason = reason
        super().__init__(f"scan: {reason}", why, "nothing to do: such objects are never read")


@contextmanager
def guarded(reason: str) -> Iterator[None]:
    """Whatever a decoder raises over hostile bytes becomes Unreadable under `reason`.

    Left alone: our own errors, want of memory, and OSError where the file itself could not be got at.
    """
    try:
        yield
    except (UsfmaeError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in ACCESS:
            raise
        raise Unreadable(reason, type(error).__name__) from None
