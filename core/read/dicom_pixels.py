"""The frames of a DICOM object, found by what stands in the file: byte counts and markers before labels and tables.

Each frame is cut out here and decoded on its own (by GDCM, openjpeg, pyjpegls, RLE, Pillow through pydicom), so that one
bad frame, a wrong offset table or a missing NumberOfFrames costs what is broken and no more (PS3.5 A.4, PS3.3 C.7.6.3).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    MPEGTransferSyntaxes,
    RLELossless,
)

from usfmae.core.read import jpeg
from usfmae.core.read.facts import Unreadable

PIXEL_DATA = (0x7FE0, 0x0010)
ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"  # (FFFE,E000), (FFFE,E0DD)
UNDEFINED = 0xFFFFFFFF
STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP")  # JPEG and JPEG-LS, JPEG 2000, JP2
JPEG_XL = ("1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.112")
JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit)
SUBSAMPLED = ("YBR_FULL_422", "YBR_PARTIAL_422")

Piece = tuple[int, int]  # offset in the file, length


@dataclass(frozen=True)
class PixelData:
    """Where each frame of an object lies."""

    file: BinaryIO
    syntax: UID
    vr: str
    frames: tuple[tuple[Piece, ...], ...]  # the pieces of each frame
    words_from: int | None = None  # bytes lie swapped in words of 16 bits that are counted from this offset

    def bytes_of(self, frame: int) -> bytes:
        if self.words_from is not None:
            return self._unswapped(*self.frames[frame][0], self.words_from)
        return b"".join(self._piece(*piece) for piece in self.frames[frame])

    def _unswapped(self, offset: int, length: int, origin: int) -> bytes:
        """Bytes out of big endian words (PS3.5 annex D): a frame of odd length ends in the middle of one."""
        before = (offset - origin) % 2
        whole = -(-(before + length) // 2) * 2
        return np.frombuffer(self._piece(offset - before, whole), ">u2").astype("<u2").tobytes()[before:][:length]

    def _piece(self, offset: int, length: int) -> bytes:
        self.file.seek(offset)
        data = self.file.read(length)
        if len(data) < length and not self.syntax.is_encapsulated:
            raise Unreadable("truncated", "the file ends before its pixels")
        return data


def syntax_of(ds: Dataset) -> UID:
    """As stated, else uncompressed in the encoding that the header was found to have."""
    if stated := ds.file_meta.get("TransferSyntaxUID"):
        return UID(str(stated))
    implicit, little = ds.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def check_syntax(syntax: UID) -> None:
    """Unreadable, by its own name, for a syntax that no decoder here knows."""
    if syntax in JPEG_XL:
        raise Unreadable("unsupported-jpeg-xl", "JPEG XL is not decoded")
    if syntax in MPEGTransferSyntaxes:
        return
    try:
        readable = get_decoder(syntax).is_available
    except NotImplementedError:
        readable = False
    if not readable:
        raise Unreadable("unsupported-syntax", f"transfer syntax {syntax.name:.60} is not decoded")


def locate(file: BinaryIO, ds: Dataset, stated: int | None) -> PixelData:
    """The frames of the object whose header was read from `file`, which stands at its pixel data.

    `stated` is NumberOfFrames, None where it is absent. More frames than stated are taken as frames.
    """
    syntax = syntax_of(ds)
    if syntax == DeflatedExplicitVRLittleEndian:  # nothing in a deflated dataset can be reached on its own
        file.seek(0)
        whole = pydicom.dcmread(file, force=True)["PixelData"]
        file, vr, length = io.BytesIO(whole.value), whole.VR, len(whole.value)
    else:
        vr, length = _enter(file, ds)
    if syntax.is_encapsulated:
        table, fragments = _fragments(file)
        return PixelData(file, syntax, "OB", _frames(file, syntax, table, fragments, ds, stated))
    start, end = file.tell(), file.seek(0, io.SEEK_END)
    if length != UNDEFINED:
        end = min(end, start + length)
    size = frame_size(ds, end - start, stated)
    count = max(stated or 1, (end - start) // size)
    frames = tuple(((start + number * size, size),) for number in range(count))
    if vr == "OW" and int(ds.get("BitsAllocated") or 8) == 8 and not ds.original_encoding[1]:
        return PixelData(file, syntax, "OB", frames, words_from=start)
    return PixelData(file, syntax, vr, frames)


def _enter(file: BinaryIO, ds: Dataset) -> tuple[str, int]:
    """Step over the header of (7FE0,0010) (PS3.5 7.1.2, 7.1.3); its VR and length. Raises Unreadable.

    Whether a VR stands there is seen, not believed: files that declare explicit VRs and hold implicit ones exist.
    """
    order = "<" if ds.original_encoding[1] else ">"
    head = file.read(8)
    if len(head) < 8 or struct.unpack(order + "HH", head[:4]) != PIXEL_DATA:
        raise Unreadable("no-pixels", "the object holds no picture")
    eight = int(ds.get("BitsAllocated") or 8) <= 8
    if head[4:6] in (b"OB", b"OW", b"UN"):
        length = struct.unpack(order + "I", file.read(4))[0]
        return head[4:6].decode() if head[4:6] != b"UN" else "OB" if eight else "OW", length
    return "OW", struct.unpack(order + "I", head[4:])[0]


# Uncompressed -------------------------------------------------------------------------------------------------


def frame_size(ds: Dataset, available: int, stated: int | None) -> int:
    """Bytes of a frame. Whether chroma is sub-sampled is decided by the byte count, the label is the second witness."""
    pixels = int(ds.Rows) * int(ds.Columns)
    samples, bits = int(ds.get("SamplesPerPixel") or 1), int(ds.get("BitsAllocated") or 8)
    if bits not in (8, 16, 32):
        raise Unreadable("unsupported-pixels", f"{bits} bits a sample")
    if str(ds.get("PhotometricInterpretation")) == "YBR_PARTIAL_420":  # of films alone (PS3.5 8.2.5)
        raise Unreadable("unsupported-pixels", "chroma sub-sampled both ways without a code")
    whole = pixels * samples * bits // 8
    if str(ds.get("PhotometricInterpretation")) not in SUBSAMPLED or samples != 3 or bits != 8:
        return whole
    half = pixels * 2
    for size in (half, whole):  # as many frames as are stated, and the byte that pads an odd count
        if stated and 0 <= available - stated * size <= 1:
            return size
    fitting = [size for size in (half, whole) if available >= size and available % size <= 1]  # any number of frames
    if len(fitting) == 1:
        return fitting[0]
    if available > half * (stated or 1):
        raise Unreadable("unsupported-pixels", "the byte count does not tell whole from sub-sampled chroma")
    return half


# Encapsulated -------------------------------------------------------------------------------------------------


def _fragments(file: BinaryIO) -> tuple[list[int], list[Piece]]:
    """The basic offset table and where each fragment lies; as many as there are before the file breaks off."""
    table: list[int] = []
    pieces: list[Piece] = []
    end = _size(file)
    first = True
    while True:
        head = file.read(8)
        if len(head) < 8 or head[:4] != ITEM:  # the sequence's end, or damage
            return table, pieces
        length = struct.unpack("<I", head[4:])[0]
        offset = file.tell()
        length = min(length, end - offset)
        if first:
            table = list(struct.unpack(f"<{length // 4}I", file.read(length)[: length // 4 * 4]))
            first = False
        elif length:
            pieces.append((offset, length))
        file.seek(offset + length)


def _size(file: BinaryIO) -> int:
    here = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(here)
    return size


def _frames(
    file: BinaryIO, syntax: UID, table: list[int], pieces: list[Piece], ds: Dataset, stated: int | None
) -> tuple[tuple[Piece, ...], ...]:
    """Fragments put together to frames: one each, else by where a code stream starts, else by the offset table."""
    if not pieces:
        raise Unreadable("no-pixels", "the object holds no picture")
    if len(pieces) == stated:
        return tuple((piece,) for piece in pieces)
    begins = _begins_rle if syntax == RLELossless else _begins
    starts = [number for number, piece in enumerate(pieces) if begins(file, piece)]
    if starts and starts[0] == 0 and (stated is None or len(starts) >= stated):
        return _grouped(pieces, starts)
    by_table = _by_table(pieces, table or _extended(ds))
    if by_table and len(by_table) >= (stated or 1):
        return _grouped(pieces, by_table)
    if (stated or 1) == 1:
        return (tuple(pieces),)
    if starts and starts[0] == 0:
        return _grouped(pieces, starts)
    return tuple((piece,) for piece in pieces)


def _begins(file: BinaryIO, piece: Piece) -> bool:
    file.seek(piece[0])
    return file.read(8).startswith(STARTS)


def _begins_rle(file: BinaryIO, piece: Piece) -> bool:
    """The head of an RLE frame: how many segments, at most 15, of which the first follows at byte 64 (PS3.5 G.5)."""
    file.seek(piece[0])
    head = file.read(8)
    return len(head) == 8 and 1 <= int.from_bytes(head[:4], "little") <= 15 and head[4:] == b"\x40\0\0\0"


def _extended(ds: Dataset) -> list[int]:
    """(7FE0,0001) Extended Offset Table."""
    raw = ds.get("ExtendedOffsetTable") or b""
    return list(struct.unpack(f"<{len(raw) // 8}Q", raw[: len(raw) // 8 * 8]))


def _by_table(pieces: Sequence[Piece], table: Sequence[int]) -> list[int]:
    """The fragment with which each frame of an offset table starts; empty where the table does not fit the file."""
    first = pieces[0][0]
    places = {offset - first: number for number, (offset, _) in enumerate(pieces)}
    starts = [places.get(offset) for offset in table]
    listed = [start for start in starts if start is not None]
    return listed if len(listed) == len(table) and listed == sorted(set(listed)) and listed[:1] == [0] else []


def _grouped(pieces: Sequence[Piece], starts: Sequence[int]) -> tuple[tuple[Piece, ...], ...]:
    ends = [*starts[1:], len(pieces)]
    return tuple(tuple(pieces[start:end]) for start, end in zip(starts, ends, strict=True))


# Decoding -----------------------------------------------------------------------------------------------------


class FrameDecoder:
    """Decodes frames of one object, as stored: no colour conversion, no scale."""

    def __init__(self, ds: Dataset, pixels: PixelData) -> None:
        self.pixels = pixels
        self.decoder = get_decoder(pixels.syntax)
        self.options: dict[str, Any] = as_pixel_options(ds) | {
            "transfer_syntax_uid": pixels.syntax,
            "pixel_keyword": "PixelData",
            "pixel_vr": pixels.vr,
            "number_of_frames": 1,
        }
        self.options.setdefault("planar_configuration", 0)
        self.options.pop("extended_offsets", None)
        whole = int(ds.Rows) * int(ds.Columns) * 3
        labelled = self.options.get("photometric_interpretation") in SUBSAMPLED and not pixels.syntax.is_encapsulated
        if labelled and pixels.frames[0][0][1] == whole:  # every pixel has its own chroma, whatever the label says
            self.options["photometric_interpretation"] = "YBR_FULL"
        self.shifts = (0, 0)
        allocated, stored = (int(ds.get(name) or 8) for name in ("BitsAllocated", "BitsStored"))
        high = int(ds.get("HighBit") or stored - 1)
        as_stored = pixels.syntax == RLELossless or not pixels.syntax.is_encapsulated
        if as_stored and stored <= high < allocated:  # samples that lie higher in their word
            self.options["bits_stored"] = allocated
            self.shifts = (allocated - 1 - high, allocated - stored)

    def __call__(self, frame: int) -> tuple[NDArray[Any], bytes]:
        """(H, W[, 3]) samples of a frame, and its code stream ("" where there is none)."""
        data = self.pixels.bytes_of(frame)
        stream = data if self.pixels.syntax.is_encapsulated else b""
        if self.pixels.syntax in JPEG and jpeg.sample_precision(stream) == 12:
            raise Unreadable("unsupported-jpeg-12-bit", "JPEG Extended with 12 bits a sample is not decoded")
        if self.pixels.syntax in JPEG2000TransferSyntaxes and stream.startswith(b"\xff\xd8"):
            # Pillow would decode it, and convert it to RGB.
            raise Unreadable("wrong-syntax", "the code stream is JPEG, the transfer syntax JPEG 2000")
        source = encapsulate([data], has_bot=False) if stream else data
        options = self.options | self._by_stream(stream)
        # GDCM hands out the stream's own samples; Pillow converts some to RGB, and nobody would know which.
        plugin = "gdcm" if self.pixels.syntax in JPEG and options.get("samples_per_pixel") == 3 else ""
        array, _ = self.decoder.as_array(source, index=0, raw=True, validate=True, decoding_plugin=plugin, **options)
        if self.pixels.syntax in JPEG and not jpeg.is_whole(stream, array):
            raise Unreadable("truncated", "the code stream ends before its picture")
        up, down = self.shifts
        return (array << up >> down if down else array), stream

    def _by_stream(self, stream: bytes) -> dict[str, Any]:
        """What the code stream says of its samples a pixel where the label says otherwise. Raises Unreadable."""
        count, bits = jpeg.stream_format(stream)
        if bits > self.options["bits_allocated"]:
            raise Unreadable("unsupported-pixels", f"{bits} bits a sample where the label says fewer")
        if count in (0, self.options.get("samples_per_pixel")):
            return {}
        if count not in (1, 3):
            raise Unreadable("unsupported-pixels", f"{count} samples a pixel")
        return {"samples_per_pixel": count, "photometric_interpretation": "MONOCHROME2" if count == 1 else "RGB"}
