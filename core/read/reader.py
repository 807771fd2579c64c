"""`read`: a Scan's frames through the reader that knows its format."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Protocol, cast

from usfmae.core.config.read import ReadSettings
from usfmae.core.read.facts import Facts, guarded
from usfmae.core.types import Frame, Scan


class Reader(Protocol):
    """What a module of this package offers for one kind of file. Adding a format is such a file and its name below."""

    SUFFIXES: tuple[str, ...]
    """Endings by which a file that is not recognised is known to be damaged."""

    def recognises(self, head: bytes) -> bool:
        """Whether the first bytes of a file are of this kind."""

    def facts(self, scan: Scan, settings: ReadSettings) -> Facts:
        """What the header tells. Raises Unreadable, RefusedScan."""

    def frames(
        self, scan: Scan, settings: ReadSettings, notes: set[str], failed: dict[int, str] | None = None
    ) -> Iterator[Frame]:
        """The frames to be kept, in order. One that cannot be decoded goes into `failed`, index -> reason.

        Raises Unreadable and RefusedScan, before the first frame or after any.
        """


READERS = ("dicom", "raster", "video", "volume")  # in the order in which they are asked


def reader(kind: str) -> Reader:
    """The module that reads one kind, imported when it is first needed."""
    return cast(Reader, importlib.import_module(f"usfmae.core.read.{kind}"))


def read(
    scan: Scan, settings: ReadSettings, notes: set[str] | None = None, failed: dict[int, str] | None = None
) -> Iterator[Frame]:
    """The frames of a scan that are to be kept, decoded one at a time, in order; each owns its pixels.

    `notes` collects remarks for the ledger ("default-rate", "colour-space-corrected"), `failed` the frames that could
    not be decoded, by index, with a reason. Raises RefusedScan (by rule) or Unreadable, both with a `.reason`.
    """
    with guarded("undecodable"):
        yield from reader(scan.kind).frames(scan, settings, set() if notes is None else notes, failed)
