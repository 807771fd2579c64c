"""Volumes and sequences: MetaImage (MHA, MHD), NRRD, NIfTI through SimpleITK. Each slice is a frame.

The header is read first; slices are then extracted one at a time where the format allows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usfmae.core.config.read import ReadSettings
from usfmae.core.read.header import Facts, check_size
from usfmae.core.read.label_masks import refuse_label_volume
from usfmae.core.read.raster import as_rgb, extent
from usfmae.core.read.refusal_codes import Unreadable
from usfmae.core.read.source import as_path, opened
from usfmae.core.read.timing import kept_slices
from usfmae.core.types import Frame, Scan

SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr", ".nii", ".nii.gz")
WHOLE = 256_000_000  # samples; larger volumes are read slice by slice
ENGINES = {"MetaImage": "MetaImageIO", "NRRD": "NrrdImageIO", "NIfTI": "NiftiImageIO"}


def family(head: bytes) -> str:
    """MetaImage, NRRD, NIfTI, or "" for anything else."""
    if head.startswith(b"NRRD0"):
        return "NRRD"
    if re.match(rb"\s*(ObjectType|NDims|Comment)\s*=", head):
        return "MetaImage"
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return "NIfTI"
    return ""


def recognises(head: bytes) -> bool:
    return bool(family(head)) or head.startswith(b"\x1f\x8b")  # .nii.gz: told apart when it is opened


@contextmanager
def _reader(scan: Scan, settings: ReadSettings) -> Iterator[tuple[Any, str]]:
    """A SimpleITK reader that has read the header, and the family's name."""
    import SimpleITK

    with opened(scan, settings) as file:
        head = file.read(65536)
    name = family(head) or "NIfTI"
    _own_data_only(head)
    with as_path(scan, settings) as path:
        reader = SimpleITK.ImageFileReader()
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        reader.SetImageIO(ENGINES[name])
        reader.SetFileName(path)
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            raise Unreadable("unreadable", f"no {name} header") from None
        yield reader, name


def _own_data_only(head: bytes) -> None:
    """Unreadable where a detached header points out of its own folder."""
    for match in re.finditer(rb"(?im)^(?:ElementDataFile\s*=|data ?file\s*:)\s*([^\r\n]*)", head):
        if b"/" in match[1] or b"\\" in match[1] or match[1].startswith(b"LIST") or b"%" in match[1]:
            raise Unreadable("foreign-data-file", "the header points to another file")


def facts(scan: Scan, settings: ReadSettings) -> Facts:
    with _reader(scan, settings) as (reader, name):
        size = reader.GetSize()
        count = prod(size[2:])
        check_size(size[0], size[1], count, settings)
        return Facts(name, count, len(kept_slices(count, settings.slices)))


def frames(scan: Scan, settings: ReadSettings, notes: set[str]) -> Iterator[Frame]:
    """Slices along every axis but the first two, in file order."""
    with _reader(scan, settings) as (reader, _):
        size = reader.GetSize()
        count = prod(size[2:])
        check_size(size[0], size[1], count, settings)
        wanted = kept_slices(count, settings.slices)
        for index, (pixels, low, high) in zip(wanted, _slices(reader, size, wanted), strict=True):
            yield Frame(as_rgb(pixels, low, high), scan.trail, index)


def _slices(reader: Any, size: tuple[int, ...], wanted: Sequence[int]) -> Iterator[tuple[NDArray[Any], float, float]]:
    """(H, W) or (H, W, 3) arrays with the range of their volume, or of the first slice read.

    A small volume is read at once, since compressed ones would be unpacked for each slice. Raises Refused for labels.
    """
    import SimpleITK

    whole = prod(size) * reader.GetNumberOfComponents() <= WHOLE
    try:
        if whole:
            image = reader.Execute()  # held: the array is a view into it
            volume = SimpleITK.GetArrayViewFromImage(image)
            refuse_label_volume(volume)
            picture = volume.shape[-3:] if reader.GetNumberOfComponents() > 1 else volume.shape[-2:]
            pictures = volume.reshape(-1, *picture)
            limits = extent(volume)
            yield from ((pictures[index], *limits) for index in wanted)
            return
        first: tuple[float, float] | None = None
        shape = tuple(reversed(size[2:]))
        for index in wanted:
            position = [int(i) for i in np.unravel_index(index, shape)] if shape else []
            reader.SetExtractSize([*size[:2], *(0 for _ in position)])
            reader.SetExtractIndex([0, 0, *reversed(position)])
            pixels = SimpleITK.GetArrayFromImage(reader.Execute())
            first = first or extent(pixels)
            yield pixels, *first
    except RuntimeError:
        raise Unreadable("unreadable", "the slices cannot be read") from None
