"""DICOM ultrasound: headers, frame times, regions, and frames decoded one at a time (DICOM PS3.3 C.8.5, PS3.5 A).

Pixels come from pydicom's decoders (Pillow, GDCM, openjpeg, pyjpegls, RLE); MPEG-2, H.264 and HEVC from cv2's FFmpeg.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments, parse_basic_offsets
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    EnhancedUSVolumeStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MPEGTransferSyntaxes,
)

from usfmae.core.config.read import ReadSettings
from usfmae.core.read import colour, sop_classes, video
from usfmae.core.read.header import Facts, check_size
from usfmae.core.read.refusal_codes import Unreadable, guarded
from usfmae.core.read.source import in_memory, opened
from usfmae.core.read.timing import kept_indices, kept_slices, steady_times
from usfmae.core.types import Frame, Region, Scan

SUFFIXES = (".dcm", ".dicom", ".ima", "")
# (0018,6012) -> what a region shows; 2D data of type 1 is tissue, 2 colour flow (PS3.3 C.8.5.5.1.2)
REGION_KINDS = {1: "tissue", 2: "color", 3: "spectral", 4: "spectral", 5: "other"}
MMODE = 2  # (0018,6012) RegionSpatialFormat
IDENTIFIERS = (
    "PatientName", "PatientID", "PatientBirthDate", "OtherPatientNames", "OtherPatientIDs", "AccessionNumber",
    "StudyID", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "StudyTime", "InstitutionName",
    "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "StationName", "PhysiciansOfRecord",
)  # fmt: skip


def recognises(head: bytes) -> bool:
    """DICM after the preamble, or a bare dataset that starts with group 0002 or 0008 in either byte order."""
    if head[128:132] == b"DICM":
        return True
    group, element = head[:2], head[2:4]
    little = group in (b"\x02\x00", b"\x08\x00") and element[1:] == b"\x00"
    big = group in (b"\x00\x02", b"\x00\x08") and element[:1] == b"\x00"
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return len(head) > 132 and (little or big) and (explicit or head[6:8] == b"\x00\x00")


def read_header(file: BinaryIO) -> Dataset:
    """The dataset up to its pixels, where `file` then stands. Raises Unreadable."""
    with guarded("bad-header"):  # damaged headers end in a dozen exception types
        ds = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    if not getattr(ds, "file_meta", None):
        ds.file_meta = pydicom.dataset.FileMetaDataset()
    return ds


def _checked(ds: Dataset, settings: ReadSettings) -> int:
    """The number of frames of a picture we may read. Raises Refused and Unreadable."""
    with guarded("bad-header"):
        sop_classes.check(ds, settings)
        count = int(ds.get("NumberOfFrames") or 1)
        check_size(int(ds.Columns), int(ds.Rows), count, settings)
        return count


def facts(scan: Scan, settings: ReadSettings) -> Facts:
    with opened(scan, settings) as file:
        ds = read_header(file)
    count = _checked(ds, settings)
    syntax = _syntax(ds)
    indices, _, notes = _kept(ds, count, settings)
    device = " ".join(_text(ds, name) for name in ("Manufacturer", "ManufacturerModelName")).strip()
    return Facts(
        f"DICOM {syntax.name.split(',')[0].split(' (')[0]}" if syntax.is_transfer_syntax else "DICOM",
        count,
        len(indices),
        device[:64],
        _text(ds, "PatientID") or _text(ds, "PatientName"),
        _text(ds, "StudyInstanceUID"),
        notes,
    )


def _syntax(ds: Dataset) -> UID:
    """As stated, else uncompressed in the encoding that the header was found to have."""
    if stated := ds.file_meta.get("TransferSyntaxUID"):
        return UID(str(stated))
    implicit, little = ds.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _text(ds: Dataset, name: str) -> str:
    try:
        value = ds.get(name)
    except Exception:  # an element whose bytes do not fit its VR
        return ""
    return "" if value is None else str(value).strip()


def _kept(
    ds: Dataset, count: int, settings: ReadSettings
) -> tuple[Sequence[int], list[float] | list[None], tuple[str, ...]]:
    """Indices of the frames to keep, the time of each frame of the object, and a note where times are assumed.

    Frames of an Enhanced US Volume (PS3.3 A.59) lie beside each other in space: they have no time, none is passed over.
    """
    if count == 1 or str(ds.get("SOPClassUID")) == EnhancedUSVolumeStorage:
        return kept_slices(count, settings.slices), [None] * count, ()
    times, notes = frame_times(ds, count, settings)
    return kept_indices(times, settings.fps), times, notes


def frame_times(ds: Dataset, count: int, settings: ReadSettings) -> tuple[list[float], tuple[str, ...]]:
    """Seconds of each frame and a note where they are assumed (PS3.3 C.7.6.5, C.7.6.6).

    FrameIncrementPointer decides between FrameTimeVector and FrameTime; without either CineRate, then
    RecommendedDisplayFrameRate, then the declared default.
    """
    for name in _timing_order(ds):
        values = _numbers(ds, name)
        if name == "FrameTimeVector" and len(values) == count and min(values) >= 0 and sum(values) > 0:
            return [float(t) / 1000 for t in np.cumsum(values) - values[0]], ()
        if name == "FrameTime" and values and values[0] > 0:
            return steady_times(count, 1000 / values[0]), ()
        if name in ("CineRate", "RecommendedDisplayFrameRate") and values and values[0] > 0:
            return steady_times(count, values[0]), ()
    return steady_times(count, settings.default_rate), ("default-rate",)


def _timing_order(ds: Dataset) -> list[str]:
    order = ["FrameTimeVector", "FrameTime", "CineRate", "RecommendedDisplayFrameRate"]
    try:
        pointer = ds.get("FrameIncrementPointer")
        pointed = [
            pydicom.datadict.keyword_for_tag(tag) for tag in ([pointer] if isinstance(pointer, int) else pointer or [])
        ]
    except Exception:
        pointed = []
    return sorted(order, key=lambda name: (name not in pointed, order.index(name)))


def _numbers(ds: Dataset, name: str) -> list[float]:
    try:
        value = ds.get(name)
        values = (
            []
            if value is None
            else list(value)
            if isinstance(value, (list, tuple, pydicom.multival.MultiValue))
            else [value]
        )
        numbers = [float(v) for v in values]
    except Exception:
        return []
    return numbers if np.isfinite(numbers).all() else []


def regions(ds: Dataset) -> tuple[Region, ...]:
    """SequenceOfUltrasoundRegions as the header states it; may lie outside the picture."""
    found = []
    try:
        for item in ds.get("SequenceOfUltrasoundRegions") or ():
            x0, y0 = int(item.RegionLocationMinX0), int(item.RegionLocationMinY0)
            x1, y1 = int(item.RegionLocationMaxX1), int(item.RegionLocationMaxY1)
            kind = REGION_KINDS.get(int(item.get("RegionDataType", 0)), "other")
            if int(item.get("RegionSpatialFormat", 1)) == MMODE:
                kind = "mmode"
            found.append(Region(x0, y0, x1 + 1, y1 + 1, kind))
    except Exception:  # a malformed sequence counts as none
        return ()
    return tuple(found)


def words(ds: Dataset) -> tuple[str, ...]:
    """Identifying strings of the header, to be looked for in the pixels; in memory only."""
    found: set[str] = set()
    for name in IDENTIFIERS:
        for part in _text(ds, name).replace("^", " ").replace("\\", " ").replace("=", " ").split():
            if len(part) >= 2:
                found.add(part)
        if name.endswith("Date"):
            found.update(_dates(_text(ds, name)))
    return tuple(sorted(found))


def _dates(text: str) -> set[str]:
    """20040119 in the ways machines print it."""
    if len(text) != 8 or not text.isdigit():
        return set()
    year, month, day = text[:4], text[4:6], text[6:]
    orders = (
        (day, month, year),
        (month, day, year),
        (year, month, day),
        (day, month, year[2:]),
        (month, day, year[2:]),
    )
    return {mark.join(order) for order in orders for mark in "/.-"}


def frames(
    scan: Scan, settings: ReadSettings, notes: set[str], failed: dict[int, str] | None = None
) -> Iterator[Frame]:
    """The kept frames as RGB, in order. Only these are decoded, except in MPEG-family syntaxes."""
    with opened(scan, settings) as file:
        ds = read_header(file)
        count = _checked(ds, settings)
        seen, sought = regions(ds), words(ds)
        decode = _mpeg if _syntax(ds) in MPEGTransferSyntaxes else _stills
        decoded = decode(file, ds, scan, count, settings, notes)
        with closing(decoded):  # a reader that takes fewer frames ends the decoder before the file is closed
            for frame in decoded:
                yield Frame(frame.pixels, scan.trail, frame.index, frame.time, seen, sought)


def _stills(
    file: BinaryIO, ds: Dataset, scan: Scan, count: int, settings: ReadSettings, notes: set[str]
) -> Generator[Frame, None, None]:
    """Frames of every syntax that codes each frame on its own."""
    indices, times, noted = _kept(ds, count, settings)
    notes.update(noted)
    to_rgb = colour.Converter(ds, notes)
    for index, array in zip(indices, _arrays(file, ds, indices), strict=True):
        yield Frame(to_rgb(array), scan.trail, index, times[index])


def _arrays(file: BinaryIO, ds: Dataset, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    """The chosen frames as stored, decoded one by one from a file that stands where its header ended."""
    syntax = _syntax(ds)
    source: Dataset | BinaryIO = file
    options = as_pixel_options(ds)
    if syntax == DeflatedExplicitVRLittleEndian:  # nothing in a deflated dataset can be reached on its own
        file.seek(0)
        source = pydicom.dcmread(file, force=True)
    else:
        options |= {
            "transfer_syntax_uid": syntax,
            "pixel_keyword": "PixelData",
            "pixel_vr": _enter_pixels(file, ds),
        }
    for array, _ in get_decoder(syntax).iter_array(source, indices=indices, raw=True, validate=True, **options):
        yield array


def _enter_pixels(file: BinaryIO, ds: Dataset) -> str:
    """Step over the header of (7FE0,0010) (PS3.5 7.1.2, 7.1.3) and return its VR. Raises Unreadable.

    Whether a VR stands there is seen, not believed: files that declare explicit VRs and hold implicit ones exist.
    """
    head = file.read(8)
    if len(head) < 8 or struct.unpack("<HH" if ds.original_encoding[1] else ">HH", head[:4]) != (0x7FE0, 0x0010):
        raise Unreadable("no-pixels", "the object holds no picture")
    if head[4:6] not in (b"OB", b"OW"):
        return "OW"
    file.read(4)
    return head[4:6].decode()


def _mpeg(
    file: BinaryIO, ds: Dataset, scan: Scan, count: int, settings: ReadSettings, notes: set[str]
) -> Generator[Frame, None, None]:
    """One MPEG-2, H.264 or HEVC stream: all fragments after the offset table, joined (PS3.5 8.2.5 ff., A.4)."""
    stated, noted = frame_times(ds, count, settings)
    file.seek(0)
    items = io.BytesIO(pydicom.dcmread(file, force=True).PixelData)
    parse_basic_offsets(items)
    with in_memory(b"".join(generate_fragments(items))) as descriptor:
        capture = video.open_capture(descriptor, settings)
        try:
            yield from video.kept_frames(capture, scan, settings, notes, () if noted else stated)
        finally:
            capture.release()
