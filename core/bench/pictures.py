"""Pictures of a benchmark, read by the very readers that `prepare` uses: any bit depth, masks told from scans."""

from __future__ import annotations

from pathlib import Path

from usfmae.core.bench.tasks.base import Example
from usfmae.core.config.read import ReadSettings
from usfmae.core.errors import SourceError
from usfmae.core.openus46.archive import Entry
from usfmae.core.read import read
from usfmae.core.read.refusal_codes import RefusedScan
from usfmae.core.types import Pixels, Scan

SETTINGS = ReadSettings()


def picture(example: Example) -> Pixels:
    """(H, W, 3) uint8 RGB at native size, the first page. Raises SourceError that names the image.

    Depths beyond 8 bits are scaled to the picture's own range.
    """
    try:
        return _first(example.entry)
    except RefusedScan as error:
        raise SourceError(f"image {example.id}", f"is refused: {error.why}", "leave it out of the task") from None
    except (SourceError, OSError) as error:
        raise SourceError(f"image {example.id}", f"cannot be decoded: {error}", "fetch it again") from None


def picture_at(path: Path) -> Pixels:
    """(H, W, 3) uint8 RGB of a file. Raises SourceError."""
    return picture(Example(str(path), Entry(path.name, path), 0, ""))


def is_label_mask(entry: Entry) -> bool:
    """Whether the picture shows flat areas of few gray levels and nothing else; False where it cannot be read."""
    try:
        _first(entry)
    except RefusedScan as error:
        return error.reason == "label-mask"
    except (SourceError, OSError):
        return False
    return False


def _first(entry: Entry) -> Pixels:
    scan = Scan(entry.path, "raster", member=entry.member)
    return next(read(scan, SETTINGS)).pixels
