"""DICOM ultrasound: headers, frame times, regions, and frames decoded one at a time (DICOM PS3.3 C.8.5, PS3.5 A).

Pixels come from pydicom's decoders (Pillow, GDCM, openjpeg, pyjpegls, RLE); MPEG-2, H.264 and HEVC from cv2's FFmpeg.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments, parse_basic_offsets
from pydicom.uid import (
    EnhancedUSVolumeStorage,
    MPEGTransferSyntaxes,
)

from usfmae.core.config.read import ReadSettings
from usfmae.core.read import colour, video
from usfmae.core.read.dicom_pixels import FrameDecoder, check_syntax, locate, syntax_of
from usfmae.core.read.facts import Facts, RefusedScan, Unreadable, check_size, guarded, refuse_icon
from usfmae.core.read.raster import extent
from usfmae.core.read.source import in_memory, opened
from usfmae.core.read.timing import kept_indices, kept_slices, steady_times
from usfmae.core.types import Frame, Region, Scan

ROOT = "1.2.840.10008.5.1.4.1.1."
# SOP class below ROOT (a trailing dot stands for all below it) -> reason
REFUSED = {
    "88.": "structured-report",
    "104.": "encapsulated-document",
    "11.": "presentation-state",
    "7": "secondary-capture",
    "7.": "secondary-capture",
    "9.": "waveform",
    "66": "raw-data",
    "66.": "derived-object",
    "68.": "derived-object",
    "481.": "radiotherapy-object",
}
ULTRASOUND = ("6", "6.1", "6.2", "6.3", "3", "3.1")  # retired classes included
DIRECTORY = "1.2.840.10008.1.3.10"


def check(ds: Dataset, settings: ReadSettings) -> None:
    """Refused with the rule's reason where this object is not an ultrasound picture."""
    sop = str(ds.get("SOPClassUID") or ds.file_meta.get("MediaStorageSOPClassUID") or "")
    if sop == DIRECTORY:
        raise RefusedScan("dicomdir", "an index of other files")
    below = sop.removeprefix(ROOT)
    for prefix, reason in REFUSED.items():
        if below == prefix or (prefix.endswith(".") and below.startswith(prefix)):
            raise RefusedScan(reason, f"SOP class ...{below:.20}")
    modality = str(ds.get("Modality") or "")
    if modality not in settings.modalities and below not in ULTRASOUND:  # the class decides before the label
        raise RefusedScan("modality", "not one of " + ", ".join(settings.modalities))
    if "Rows" not in ds or "Columns" not in ds:
        raise RefusedScan("no-pixels", "the object holds no picture")


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
    """The number of frames of a picture we may read. Raises RefusedScan and Unreadable."""
    with guarded("bad-header"):
        check(ds, settings)
        check_syntax(syntax_of(ds))
        count = _stated(ds) or 1
        check_size(int(ds.Columns), int(ds.Rows), count, settings)
        return count


def facts(scan: Scan, settings: ReadSettings) -> Facts:
    with opened(scan, settings) as file:
        ds = read_header(file)
        count = _checked(ds, settings)
        refuse_icon(int(ds.Columns), int(ds.Rows))
        syntax = syntax_of(ds)
        if syntax not in MPEGTransferSyntaxes:
            with guarded("undecodable"):
                count = max(count, len(locate(file, ds, _stated(ds)).frames))
            check_size(int(ds.Columns), int(ds.Rows), count, settings)
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
    regions_ = []
    try:
        for item in ds.get("SequenceOfUltrasoundRegions") or ():
            x0, y0 = int(item.RegionLocationMinX0), int(item.RegionLocationMinY0)
            x1, y1 = int(item.RegionLocationMaxX1), int(item.RegionLocationMaxY1)
            kind = REGION_KINDS.get(int(item.get("RegionDataType", 0)), "other")
            if int(item.get("RegionSpatialFormat", 1)) == MMODE:
                kind = "mmode"
            regions_.append(Region(x0, y0, x1 + 1, y1 + 1, kind))
    except Exception:  # a malformed sequence counts as none
        return ()
    return tuple(regions_)


def words(ds: Dataset) -> tuple[str, ...]:
    """Identifying strings of the header, to be looked for in the pixels; in memory only."""
    texts: set[str] = set()
    for name in IDENTIFIERS:
        for part in _text(ds, name).replace("^", " ").replace("\\", " ").replace("=", " ").split():
            if len(part) >= 2:
                texts.add(part)
        if name.endswith("Date"):
            texts.update(_dates(_text(ds, name)))
    return tuple(sorted(texts))


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
        regions_, texts = regions(ds), words(ds)
        decode = _mpeg if syntax_of(ds) in MPEGTransferSyntaxes else _stills
        failed = {} if failed is None else failed
        for frame in decode(file, ds, count, settings, notes, failed):
            yield Frame(frame.pixels, scan.trail, frame.index, frame.time, regions_, texts)


def _stills(
    file: BinaryIO, ds: Dataset, count: int, settings: ReadSettings, notes: set[str], failed: dict[int, str]
) -> Iterator[Frame]:
    """Frames of every syntax that codes each frame on its own. One that does not decode is counted, not fatal."""
    pixels = locate(file, ds, _stated(ds))
    there = len(pixels.frames)
    count = max(count, there)
    check_size(int(ds.Columns), int(ds.Rows), count, settings)
    if there != (_stated(ds) or 1):
        notes.add("frames-miscounted")
    indices, times, noted = _kept(ds, count, settings)
    notes.update(noted)
    decoder, to_rgb = FrameDecoder(ds, pixels), colour.Converter(ds, notes)
    chosen = [index for index in indices if index < there]
    failed.update((index, "missing-frame") for index in indices if index >= there)
    if to_rgb.needs_range:
        to_rgb.limits = _range(decoder, chosen)
    decoded = 0
    for index in chosen:
        try:
            picture = to_rgb(*decoder(index))
        except MemoryError:
            raise
        except Exception as error:
            failed[index] = error.reason if isinstance(error, Unreadable) else "undecodable"
            continue
        decoded += 1
        yield Frame(picture, index=index, time=times[index])
    if not decoded:  # all of it is the scan's fault, not a frame's
        reasons = sorted({failed.pop(index) for index in indices if index in failed})
        raise Unreadable(reasons[0] if len(reasons) == 1 else "undecodable", "not one frame could be decoded")


def _range(decoder: FrameDecoder, indices: Sequence[int]) -> tuple[float, float] | None:
    """Lowest and highest sample of all kept frames of a deep object without a window: one scale for the whole clip."""
    ends = []
    for index in indices:
        with suppress(Exception):  # counted when it is decoded for good; want of memory comes again then
            ends.append(extent(decoder(index)[0]))
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None


def _stated(ds: Dataset) -> int | None:
    """NumberOfFrames, None where it is absent."""
    return int(ds.get("NumberOfFrames") or 0) or None


def _mpeg(
    file: BinaryIO, ds: Dataset, count: int, settings: ReadSettings, notes: set[str], failed: dict[int, str]
) -> Iterator[Frame]:
    """One MPEG-2, H.264 or HEVC stream: all fragments after the offset table, joined (PS3.5 8.2.5 ff., A.4)."""
    times, noted = frame_times(ds, count, settings)
    file.seek(0)
    items = io.BytesIO(pydicom.dcmread(file, force=True).PixelData)
    parse_basic_offsets(items)
    with in_memory(b"".join(generate_fragments(items))) as descriptor:
        there = yield from video.decoded(descriptor, settings, notes, failed, () if noted else times, count)
    if there != count:
        notes.add("frames-miscounted")
