"""Volumes and sequences: MetaImage (MHA, MHD), NRRD, NIfTI, plain or gzipped. Each slice is a frame.

The header is read by `volume_header.py`; what is left to do is to unpack the samples and cut them. Samples that lie
plainly in a file are mapped, so that one slice is in memory at a time.
"""

from __future__ import annotations

import bz2
import gzip
import io
import mmap
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from usfmae.core.config.read import ReadSettings
from usfmae.core.read.facts import Facts, Unreadable, check_size, guarded, refuse_icon
from usfmae.core.read.raster import as_rgb, extent, refuse_label_volume
from usfmae.core.read.source import name_of, opened, opened_data_file
from usfmae.core.read.timing import kept_slices
from usfmae.core.read.volume_header import VolumeHeader, as_numbers, family, parse, skip_lines
from usfmae.core.types import Frame, Scan

SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr", ".nii", ".nii.gz", ".nrrd.gz", ".mha.gz", ".hdr.gz")
GZIP = b"\x1f\x8b"
CHUNK = 1 << 20  # bytes unpacked at once
TEXT = 32  # characters of a sample written as text, at most


def recognises(head: bytes) -> bool:
    return bool(family(unpacked_head(head)))


def unpacked_head(head: bytes) -> bytes:
    """The first bytes of what a gzip file holds; other bytes as they are."""
    if not head.startswith(GZIP):
        return head
    try:
        return zlib.decompressobj(31).decompress(head, 4096)
    except zlib.error:
        return b""


@contextmanager
def _header(scan: Scan, settings: ReadSettings) -> Iterator[tuple[VolumeHeader, IO[bytes]]]:
    """The header, and the file that stands behind it. Checked against the limits."""
    with opened(scan, settings) as file:
        packed = file.read(2) == GZIP
        file.seek(0)
        plain: IO[bytes] = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if packed else file
        with guarded("unreadable"):
            header = parse(plain, name_of(scan))
        rows, columns = (header.shape[axis] for axis in header.picture)
        check_size(columns, rows, header.frames, settings)
        if packed and header.offset < 0:
            raise Unreadable("bad-header", "the end of a packed file is stated")
        if header.nbytes > settings.max_member_mb * 1e6 and (packed or header.encoding != "raw"):
            raise Unreadable("too-large", f"the samples unpack to more than {settings.max_member_mb:g} MB")
        yield header, plain


def facts(scan: Scan, settings: ReadSettings) -> Facts:
    with _header(scan, settings) as (header, _):
        refuse_icon(*(header.shape[axis] for axis in header.picture))
        slices = len(kept_slices(header.frames, settings.slices))
        return Facts(header.family, header.frames, slices, data_file=header.data_file)


def frames(
    scan: Scan, settings: ReadSettings, notes: set[str], failed: dict[int, str] | None = None
) -> Iterator[Frame]:
    """Pictures along every axis but rows, columns and colour, in the order in which they are stored, on one scale."""
    with _header(scan, settings) as (header, file), _samples(scan, settings, header, file) as samples:
        pictures = _cut(samples, header)
        refuse_label_volume(samples)
        low, high = _scale(samples, header)
        for index in kept_slices(header.frames, settings.slices):
            position = np.unravel_index(index, pictures.shape[: len(header.others)]) if header.others else ()
            yield Frame(as_rgb(_valued(pictures[position], header), low, high), scan.trail, index)


@contextmanager
def _samples(
    scan: Scan, settings: ReadSettings, header: VolumeHeader, file: IO[bytes]
) -> Iterator[NDArray[np.generic]]:
    """All samples in the shape that the header states. Raises Unreadable where there are fewer."""
    if not header.data_file:
        file.seek(0 if header.offset < 0 else header.offset)
        with _unpacked(file, header) as samples:
            yield samples
        return
    with opened_data_file(scan, header.data_file, settings) as other:
        skip_lines(other, header.skipped_lines)
        if header.offset > 0:
            other.seek(header.offset, io.SEEK_CUR)
        with _unpacked(other, header) as samples:
            yield samples


@contextmanager
def _unpacked(file: IO[bytes], header: VolumeHeader) -> Iterator[NDArray[np.generic]]:
    """The samples from where `file` stands; a view, gone with the context."""
    plain = header.encoding == "raw" and isinstance(file, io.BufferedReader)
    data = _mapped(cast(BinaryIO, file), header) if plain else _read(file, header)
    yield np.frombuffer(data, header.dtype).reshape(header.shape)


def _mapped(file: BinaryIO, header: VolumeHeader) -> memoryview:
    start = file.tell()
    size = file.seek(0, io.SEEK_END)
    if header.offset < 0:
        start = size - header.nbytes
    if start < 0 or start + header.nbytes > size:
        raise Unreadable("truncated", "the file ends before its samples")
    return memoryview(mmap.mmap(file.fileno(), start + header.nbytes, access=mmap.ACCESS_READ))[start:]


def _read(file: IO[bytes], header: VolumeHeader) -> bytes | bytearray:
    """The samples unpacked, no more than the header states."""
    try:
        if header.encoding in ("ascii", "hex"):
            data: bytes | bytearray = as_numbers(file.read(header.nbytes * TEXT), header)
        elif header.encoding == "raw":
            data = file.read()[-header.nbytes :] if header.offset < 0 else file.read(header.nbytes)
            file.read(1)  # at its end a packed file compares its check sum
        else:
            data = _decompressed(file, header)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise Unreadable("truncated" if isinstance(error, EOFError) else "undecodable", type(error).__name__) from None
    if len(data) < header.nbytes:
        raise Unreadable("truncated", "the file ends before its samples")
    return data[: header.nbytes]


def _decompressed(file: IO[bytes], header: VolumeHeader) -> bytearray:
    """Samples out of zlib, gzip or bzip2 streams that follow each other, and one byte more for the last check sum."""
    data = bytearray()
    chunk = file.read(CHUNK)
    while chunk and len(data) <= header.nbytes:
        unpack: Any = bz2.BZ2Decompressor() if header.encoding == "bzip2" else zlib.decompressobj(47)
        while chunk and not unpack.eof and (room := header.nbytes + 1 - len(data)) > 0:
            data += unpack.decompress(chunk, room)
            chunk = file.read(CHUNK)
        if unpack.eof and unpack.unused_data.strip(b"\0"):
            chunk = unpack.unused_data + chunk
    return data


def _cut(samples: NDArray[np.generic], header: VolumeHeader) -> NDArray[np.generic]:
    """A view with the axes in the order: series and space, rows, columns, colour."""
    last = () if header.components is None else (header.components,)
    return samples.transpose(*header.others, *header.picture, *last)


def _valued(pixels: NDArray[Any], header: VolumeHeader) -> NDArray[Any]:
    """Samples as the values they stand for: NIfTI's slope and intercept, in native byte order."""
    if (header.slope, header.intercept) == (1.0, 0.0):
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return pixels * header.slope + header.intercept


def _scale(samples: NDArray[np.generic], header: VolumeHeader) -> tuple[float | None, float | None]:
    """The range of the whole volume, piece by piece; none for bytes, which are taken as they are."""
    if samples.dtype == np.uint8 and (header.slope, header.intercept) == (1.0, 0.0):
        return None, None
    flat = samples.reshape(-1)
    ends = [extent(flat[start : start + CHUNK]) for start in range(0, flat.size, CHUNK)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    valued = sorted(end * header.slope + header.intercept for end in (low, high))
    return valued[0], valued[1]
