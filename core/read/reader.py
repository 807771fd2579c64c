"""`read`: a Scan's frames through the reader that knows its format."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

from usfmae.core.config.read import ReadSettings
from usfmae.core.read.refusal_codes import guarded
from usfmae.core.types import Frame, Scan

# The order in which they are asked. Each has SUFFIXES, recognises(head), facts(scan, ...), frames(scan, ...).
READERS = ("dicom", "raster", "video", "volume")


def reader(kind: str) -> ModuleType:
    """The module that reads one kind, imported when it is first needed."""
    return importlib.import_module(f"usfmae.core.read.{kind}")


def read(scan: Scan, settings: ReadSettings, notes: set[str] | None = None) -> Iterator[Frame]:
    """The frames of a scan that are to be kept, decoded one at a time, in order.

    `notes` collects remarks for the ledger ("default-rate", "colour-space-corrected").
    Raises Refused (by rule) or Unreadable, both SourceError with a `.reason`.
    """
    with guarded("undecodable"):
        yield from reader(scan.kind).frames(scan, settings, set() if notes is None else notes)
