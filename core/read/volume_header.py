"""Headers of volumes, by a grammar of our own: MetaImage (MHA, MHD), NRRD (NRRD, NHDR), NIfTI-1 and NIfTI-2.

A header of this kind may name the file that holds its pixels. Libraries open whatever it names; here it may name one
plain file in its own folder and nothing else. Sources: MetaIO's documentation, nrrd.sourceforge.net "format",
nifti1.h and nifti2.h. What is declared neither gray nor RGB(A) is refused, as are axes that are no picture.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import IO

import numpy as np

from usfmae.core.read.facts import RefusedScan, Unreadable

LINE, LINES = 1 << 20, 1_000_000  # bytes of a line, lines of a header: sequence files state ten lines a frame
LARGEST_AXIS = 1 << 31


@dataclass(frozen=True)
class VolumeHeader:
    """What the samples of a volume are and where they lie. Axes stand slowest first, as in NumPy."""

    family: str  # "MetaImage", "NRRD", "NIfTI"
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]  # of every axis as stored
    picture: tuple[int, int]  # the axes of rows and of columns
    components: int | None = None  # the axis of colour samples, None for gray
    encoding: str = "raw"  # "raw", "gzip", "bzip2", "ascii", "hex"
    data_file: str = ""  # the file in the same folder that holds the samples, "" where they follow the header
    offset: int = 0  # bytes before the samples; -1: they end the file
    skipped_lines: int = 0
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def others(self) -> tuple[int, ...]:
        """The axes along which pictures follow each other: space, time, list."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in (*self.picture, self.components))

    @property
    def frames(self) -> int:
        return prod(self.shape[axis] for axis in self.others)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def family(head: bytes) -> str:
    """MetaImage, NRRD, NIfTI, or "" for anything else, by a file's first bytes."""
    if head.startswith(b"NRRD0"):
        return "NRRD"
    if re.match(rb"\s*(ObjectType|ObjectSubType|NDims|Comment|DimSize|ElementType|BinaryData)\s*[=:]", head, re.I):
        return "MetaImage"
    if head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0"):
        return "NIfTI"
    return ""


def parse(file: IO[bytes], name: str) -> VolumeHeader:
    """The header of a file that stands at its start; `name` is the file's own. Raises Unreadable, RefusedScan."""
    kind = family(file.read(512))
    file.seek(0)
    readers: dict[str, Callable[[IO[bytes], str], VolumeHeader]] = {
        "MetaImage": _metaimage,
        "NRRD": _nrrd,
        "NIfTI": _nifti,
    }
    if kind not in readers:
        raise Unreadable("unreadable", "no header of a volume")
    try:
        header = readers[kind](file, name)
    except (KeyError, ValueError, IndexError, struct.error, OverflowError) as error:
        raise Unreadable("bad-header", f"{kind}: {type(error).__name__}") from None
    if not all(0 < size < LARGEST_AXIS for size in header.shape):
        raise Unreadable("no-pixels", "the header describes an empty picture")
    return header


# Text headers -------------------------------------------------------------------------------------------------


def _lines(file: IO[bytes]) -> Iterator[str]:
    """Lines without their ends. Unreadable where one holds a bare control character or never ends."""
    for _ in range(LINES):
        line = file.readline(LINE)
        text = line.rstrip(b"\r\n").decode("latin-1")
        if not line or (len(line) == LINE and not line.endswith(b"\n")):
            return
        if any(ord(c) < 32 and c != "\t" for c in text):
            raise Unreadable("bad-header", "a control character stands in it")
        yield text
    raise Unreadable("bad-header", "it does not end")


def plain_name(text: str) -> str:
    """The one file name that `text` is. Unreadable for a path, a list, a pattern, or the name of a folder."""
    if not text or text in (".", "..") or any(c in "/\\%\0" or ord(c) < 32 for c in text) or len(text) > 255:
        raise Unreadable("foreign-data-file", "the header points to another file")
    if text.upper().split()[0] == "LIST":
        raise Unreadable("foreign-data-file", "the header lists several files")
    return text


MET_TYPES = {
    "UCHAR": "u1", "CHAR": "i1", "USHORT": "u2", "SHORT": "i2", "UINT": "u4", "INT": "i4", "ULONG": "u4", "LONG": "i4",
    "ULONG_LONG": "u8", "LONG_LONG": "i8", "FLOAT": "f4", "DOUBLE": "f8",
}  # fmt: skip


def _metaimage(file: IO[bytes], name: str) -> VolumeHeader:
    fields: dict[str, str] = {}
    for line in _lines(file):
        if not line.strip():
            continue
        sign = min((place for place in (line.find("="), line.find(":")) if place >= 0), default=-1)
        if sign < 0:
            raise Unreadable("bad-header", "a line is no field")
        key = line[:sign].strip().lower()
        if key in fields and key != "comment":
            raise Unreadable("bad-header", "a field stands twice")
        fields[key] = line[sign + 1 :].strip()
        if key == "elementdatafile":  # the last field: the samples may follow
            break
    else:
        raise Unreadable("bad-header", "no ElementDataFile")
    if fields.get("ultrasoundimagetype", "").upper().startswith("RF"):
        raise RefusedScan("radio-frequency", "echoes before a picture was made of them")
    order = ">" if _yes(fields.get("binarydatabyteordermsb") or fields.get("elementbyteordermsb")) else "<"
    sizes = [int(size) for size in fields["dimsize"].split()]
    if len(sizes) != int(fields["ndims"]):
        raise ValueError
    channels = int(fields.get("elementnumberofchannels", 1))
    kinds = fields.get("kinds", "").split() or ["domain"] * len(sizes)
    if channels > 1:
        sizes, kinds = [channels, *sizes], ["samples", *kinds]
    data_file = "" if fields["elementdatafile"].upper() == "LOCAL" else plain_name(fields["elementdatafile"])
    start = int(fields.get("headersize", 0)) if data_file else file.tell()
    gzip = _yes(fields.get("compresseddata"))
    binary = _yes(fields.get("binarydata", "True"))
    dtype = np.dtype(order + MET_TYPES[fields["elementtype"].upper().removeprefix("MET_").removesuffix("_ARRAY")])
    return VolumeHeader(
        "MetaImage",
        dtype,
        tuple(reversed(sizes)),
        *_axes(kinds, sizes, dtype),
        encoding="gzip" if gzip else "raw" if binary else "ascii",
        data_file=data_file,
        offset=start,
    )


def _yes(text: str | None) -> bool:
    return bool(text) and str(text).strip()[:1].upper() in ("T", "1", "Y")


NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
ENCODINGS = {
    "raw": "raw", "txt": "ascii", "text": "ascii", "ascii": "ascii", "hex": "hex", "gz": "gzip", "gzip": "gzip",
    "bz2": "bzip2", "bzip2": "bzip2",
}  # fmt: skip


def _nrrd(file: IO[bytes], name: str) -> VolumeHeader:
    fields: dict[str, str] = {}
    lines = _lines(file)
    next(lines)  # the magic
    for line in lines:
        if not line:  # ends the header
            break
        if line.startswith("#") or ":=" in line:  # a comment, or a pair of the user's own
            continue
        key, colon, value = line.partition(":")
        key = " ".join(key.split()).lower().replace("datafile", "data file").replace("centerings", "centers")
        if not colon or key in fields:
            raise Unreadable("bad-header", "a line is no field, or a field stands twice")
        fields[key] = value.strip()
    sizes = [int(size) for size in fields["sizes"].split()]
    if len(sizes) != int(fields["dimension"]):
        raise ValueError
    data_file = plain_name(fields["data file"]) if "data file" in fields else ""
    code = next(code for code, names in NRRD_TYPES.items() if " ".join(fields["type"].lower().split()) in names)
    dtype = np.dtype((">" if fields.get("endian", "little").lower() == "big" else "<") + code)
    skip = int(fields.get("byte skip") or fields.get("byteskip") or 0)
    kinds = fields.get("kinds", "").split() or ["domain"] * len(sizes)
    skipped_lines = _positive(int(fields.get("line skip") or fields.get("lineskip") or 0))
    if not data_file:
        skip_lines(file, skipped_lines)
    return VolumeHeader(
        "NRRD",
        dtype,
        tuple(reversed(sizes)),
        *_axes(kinds, sizes, dtype),
        encoding=ENCODINGS[fields["encoding"].lower()],
        data_file=data_file,
        offset=-1 if skip == -1 else _positive(skip) + (0 if data_file else file.tell()),
        skipped_lines=skipped_lines if data_file else 0,
    )


def _positive(number: int) -> int:
    if number < 0:
        raise ValueError
    return number


# Axes ---------------------------------------------------------------------------------------------------------

PLACES = ("domain", "space")
SERIES = ("time", "list")
COLOURS = {"rgb-color": 3, "3-color": 3, "rgba-color": 4, "4-color": 4}
UNSTATED = ("samples", "vector")  # several samples a point
UNKNOWN = ("???", "none", "unknown")


def _axes(kinds: list[str], sizes: list[int], dtype: np.dtype[np.generic]) -> tuple[tuple[int, int], int | None]:
    """(axes of rows and columns, axis of colour samples) of axes given fastest first; the result counts slowest first.

    The two fastest axes of space are the picture. Three or four unsigned samples without a stated meaning are colour,
    as ITK writes it. Raises RefusedScan for components that are no colour.
    """
    if len(kinds) != len(sizes):
        raise ValueError
    space: list[int] = []
    components: int | None = None
    for axis, (kind, size) in enumerate(zip((kind.lower() for kind in kinds), sizes, strict=True)):
        if kind in PLACES or kind in UNKNOWN:
            space.append(axis)
        elif kind in SERIES or size == 1:
            continue
        elif COLOURS.get(kind) == size or (kind in UNSTATED and size in (3, 4) and dtype.kind == "u"):
            if components is not None:
                raise RefusedScan("not-a-picture", "two axes of colour")
            components = axis
        else:
            raise RefusedScan("not-a-picture", "samples that are neither gray nor RGB")
    if len(space) < 2:
        raise RefusedScan("not-a-picture", "fewer than two axes of space")
    last = len(sizes) - 1
    return (last - space[1], last - space[0]), None if components is None else last - components


# NIfTI --------------------------------------------------------------------------------------------------------

NIFTI_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 128: "u1", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
    2304: "u1",
}  # fmt: skip
NIFTI_COLOUR = {128: 3, 2304: 4}  # RGB24, RGBA32: the samples of a pixel lie beside each other
INTENTS = {2003: 3, 2004: 4}  # RGB_VECTOR, RGBA_VECTOR: the samples lie along the fifth axis
LABEL = 1002


def _nifti(file: IO[bytes], name: str) -> VolumeHeader:
    head = file.read(540)
    second = head[4:8] in (b"n+2\0", b"ni2\0")
    size = 540 if second else 348
    order = next(order for order in "<>" if struct.unpack(order + "i", head[:4])[0] == size)
    if second:
        code, dims = struct.unpack_from(order + "h", head, 12)[0], struct.unpack_from(order + "8q", head, 16)
        offset = struct.unpack_from(order + "q", head, 168)[0]
        slope, intercept = struct.unpack_from(order + "2d", head, 176)
        intent, magic = struct.unpack_from(order + "i", head, 504)[0], head[4:8]
    else:
        dims, code = struct.unpack_from(order + "8h", head, 40), struct.unpack_from(order + "h", head, 70)[0]
        offset, slope, intercept = struct.unpack_from(order + "3f", head, 108)
        intent, magic = struct.unpack_from(order + "h", head, 68)[0], head[344:348]
    if intent == LABEL:
        raise RefusedScan("label-mask", "a volume of labels")
    if code not in NIFTI_TYPES:
        raise RefusedScan("not-a-picture", "samples that are neither gray nor RGB")
    if not 2 <= dims[0] <= 7:
        raise ValueError
    sizes = [int(size) for size in dims[1 : dims[0] + 1]]
    kinds = ["domain", "domain", "domain", "time", "samples", "other", "other"][: len(sizes)]
    if len(sizes) > 4 and sizes[4] > 1 and INTENTS.get(intent) != sizes[4]:
        raise RefusedScan("not-a-picture", "several values a point that are no colour")
    if code in NIFTI_COLOUR:
        sizes, kinds = [NIFTI_COLOUR[code], *sizes], ["samples", *kinds]
    dtype = np.dtype(order + NIFTI_TYPES[code])
    pair = magic[:2] == b"ni"
    scaled = np.isfinite([slope, intercept]).all() and slope != 0
    return VolumeHeader(
        "NIfTI",
        dtype,
        tuple(reversed(sizes)),
        *_axes(kinds, sizes, dtype),
        data_file=plain_name(_image_of(name)) if pair else "",
        offset=_positive(int(offset)) if pair else max(int(offset), size),
        slope=float(slope) if scaled else 1.0,
        intercept=float(intercept) if scaled else 0.0,
    )


def _image_of(name: str) -> str:
    """x.hdr -> x.img, x.hdr.gz -> x.img.gz, in the letters' own case."""
    stem, dot, rest = name.rpartition(".hdr") if ".hdr" in name else name.rpartition(".HDR")
    return f"{stem}{'.IMG' if dot == '.HDR' else '.img'}{rest}" if dot else ""


def skip_lines(file: IO[bytes], lines: int) -> None:
    for _ in range(lines):
        if not file.readline(LINE):
            raise Unreadable("truncated", "the file ends before its samples")


def as_numbers(data: bytes, header: VolumeHeader) -> bytes:
    """Samples written as text, in the binary form that the header declares. ValueError where they are none."""
    if header.encoding == "hex":
        return bytes.fromhex(data.decode("ascii"))
    return np.loadtxt(io.BytesIO(data.replace(b"\n", b" ")), dtype=np.float64).astype(header.dtype).tobytes()
