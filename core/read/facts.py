"""What is known of a scan before its pixels are decoded, or why it is not read: by rule, or because it cannot be.

A refusal carries a short code that goes into ledgers and reports, so it never holds anything out of the file.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from usfmae.core.config.read import ReadSettings
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


SMALLEST = 40  # pixels of the shorter side; viewers on patients' discs bring icons


@dataclass(frozen=True)
class Facts:
    """From a header alone. `patient` and `study` are identifiers: in memory only, they leave it as an HMAC."""

    format: str  # for people: "DICOM JPEG Baseline", "PNG", "mp4"
    frames: int  # frames in the file, as far as its header tells
    planned: int  # frames that are likely to be kept
    device: str = ""  # maker and model, "" where unknown
    patient: str = ""
    study: str = ""
    notes: tuple[str, ...] = ()  # for the ledger: "default-rate"
    data_file: str = ""  # name of the file in the same folder that holds the pixels; in memory only


def refuse_icon(width: int, height: int) -> None:
    """RefusedScan for a picture that is too small to be a scan."""
    if 0 < min(width, height) < SMALLEST:
        raise RefusedScan("too-small", f"{width} x {height} pixels: an icon, no scan")


def check_size(width: int, height: int, frames: int, settings: ReadSettings) -> None:
    """Unreadable where the header claims an empty or an absurdly large picture, before anything is decoded."""
    if width < 1 or height < 1 or frames < 1:
        raise Unreadable("no-pixels", "the header describes an empty picture")
    if width * height > settings.max_megapixels * 1e6:
        raise Unreadable("too-large", f"{width} x {height} pixels, the limit is {settings.max_megapixels:g} megapixels")
    if frames > settings.max_frames:
        raise Unreadable("too-many-frames", f"{frames} frames, the limit is {settings.max_frames}")
