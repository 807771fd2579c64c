"""Compressed DICOM as other programs write it: cells of the matrix of `decoders.py`.

Encoders are DCMTK (JPEG lossless of any predictor, Extended of 8 and 12 bits, progressive, JPEG-LS, RLE, deflated, big
endian), OpenJPH (HTJ2K) and openjpeg; decoders that confirm are DCMTK's and OpenJPH's own, beside those of `decoders.py`.
Where a code loses bits, the truth is what the encoder's own decoder shows. Odd and even sizes, one frame and three, one
fragment a frame and several, with an offset table, an extended one, an empty one and a wrong one. Programs that are not
installed leave their cells out.
"""

from __future__ import annotations

import io
import itertools
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from decoders_cells import Array, Cell, by_gdcm, by_pydicom, dataset, gray, save, smooth, with_palette
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate, generate_fragments, generate_frames, parse_basic_offsets
from pydicom.pixels import convert_color_space

SIZES = ((48, 64), (47, 63), (203, 301))
KINDS = (  # photometric interpretation, bits stored, signed
    ("MONOCHROME1", 8, False),
    ("MONOCHROME2", 8, False),
    ("MONOCHROME2", 10, False),
    ("MONOCHROME2", 12, False),
    ("MONOCHROME2", 16, False),
    ("MONOCHROME2", 16, True),
    ("PALETTE COLOR", 8, False),
    ("RGB", 8, False),
    ("YBR_FULL", 8, False),
)
LOSSY = 2  # gray levels by which decoders of a lossy code differ
Encoder = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Code:
    """A way to compress: the program, and what it takes."""

    name: str
    program: str
    encode: Encoder
    lossy: bool = False
    deepest: int = 16
    colour: tuple[str, ...] = ("RGB", "YBR_FULL", "PALETTE COLOR")
    signed: bool = True


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=60)


def dcmtk(*command: str) -> Encoder:
    return lambda plain, packed: run(*command, plain, packed)


def htj2k(syntax: str, *options: str) -> Encoder:
    """OpenJPH takes pictures, not DICOM."""

    def encode(plain: Path, packed: Path) -> None:
        ds = pydicom.dcmread(plain)
        streams = []
        for frame in frames_of(ds):
            source, target = packed.with_suffix(".ppm" if frame.ndim == 3 else ".pgm"), packed.with_suffix(".j2c")
            source.write_bytes(portable(frame, int(ds.BitsStored)))
            run("ojph_compress", "-i", source, "-o", target, *options)
            streams.append(target.read_bytes())
        ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
        if ds.PhotometricInterpretation == "RGB":
            ds.PhotometricInterpretation = "YBR_RCT" if "true" in options else "YBR_ICT"
        ds.PixelData = encapsulate(streams)
        ds["PixelData"].VR = "OB"
        ds.save_as(packed, enforce_file_format=True)

    return encode


def portable(frame: Array, bits: int) -> bytes:
    """A PGM or PPM of (H, W[, 3])."""
    kind = b"P6" if frame.ndim == 3 else b"P5"
    head = b"%s %d %d %d\n" % (kind, frame.shape[1], frame.shape[0], (1 << bits) - 1)
    return head + (frame.astype(">u2") if bits > 8 else frame).tobytes()


def frames_of(ds: pydicom.Dataset) -> Array:
    """(N, H, W[, 3]) as stored, from an uncompressed object."""
    array = np.frombuffer(ds.PixelData, "<u1" if ds.BitsAllocated == 8 else "<i2" if ds.PixelRepresentation else "<u2")
    shape = [int(ds.NumberOfFrames), int(ds.Rows), int(ds.Columns)] + [3] * (ds.SamplesPerPixel == 3)
    return array[: int(np.prod(shape))].reshape(shape)


def openjpeg(plain: Path, packed: Path) -> None:
    ds = pydicom.dcmread(plain)
    ds.compress(uid.JPEG2000, j2k_psnr=[60], generate_instance_uid=False)
    ds.save_as(packed, enforce_file_format=True)


CODES = (
    Code("JPEG lossless SV1", "dcmcjpeg", dcmtk("dcmcjpeg", "+e1")),
    *(
        Code(f"JPEG lossless process 14 predictor {n}", "dcmcjpeg", dcmtk("dcmcjpeg", "+el", "+sv", str(n)))
        for n in range(1, 8)
    ),
    Code("JPEG baseline", "dcmcjpeg", dcmtk("dcmcjpeg", "+eb", "+be"), True, 8, ("RGB",), False),
    Code("JPEG baseline 4:4:4", "dcmcjpeg", dcmtk("dcmcjpeg", "+eb", "+s4"), True, 8, ("RGB",), False),
    Code("JPEG baseline RGB", "dcmcjpeg", dcmtk("dcmcjpeg", "+eb", "+cr"), True, 8, ("RGB",), False),
    Code("JPEG extended", "dcmcjpeg", dcmtk("dcmcjpeg", "+ee"), True, 12, ("RGB",), False),
    Code("JPEG extended 12 bits", "dcmcjpeg", dcmtk("dcmcjpeg", "+ee", "+bt"), True, 12, (), False),
    Code("JPEG progressive", "dcmcjpeg", dcmtk("dcmcjpeg", "+ep"), True, 12, ("RGB",), False),
    Code("JPEG-LS", "dcmcjpls", dcmtk("dcmcjpls", "+el")),
    Code("JPEG-LS by sample", "dcmcjpls", dcmtk("dcmcjpls", "+el", "+is")),
    Code("JPEG-LS by plane", "dcmcjpls", dcmtk("dcmcjpls", "+el", "+in")),
    Code("JPEG-LS near-lossless", "dcmcjpls", dcmtk("dcmcjpls", "+en"), True, signed=False, colour=("RGB",)),
    Code("RLE by DCMTK", "dcmcrle", dcmtk("dcmcrle")),
    Code("deflated by DCMTK", "dcmconv", dcmtk("dcmconv", "+td")),
    Code("big endian by DCMTK", "dcmconv", dcmtk("dcmconv", "+tb")),
    Code("JPEG 2000 lossy", "dcmconv", openjpeg, True, 8, ("RGB",), False),
    Code("HTJ2K lossless", "ojph_compress", htj2k("1.2.840.10008.1.2.4.201", "-reversible", "true"), signed=False),
    Code(
        "HTJ2K lossless RPCL", "ojph_compress",
        htj2k("1.2.840.10008.1.2.4.202", "-reversible", "true", "-prog_order", "RPCL"), signed=False,
    ),
    Code("HTJ2K", "ojph_compress", htj2k("1.2.840.10008.1.2.4.203", "-qstep", "0.004"), True, 12, ("RGB",), False),
)  # fmt: skip


def packed_cells(folder: Path) -> Iterator[Cell]:
    for number, (code, kind, size, count) in enumerate(itertools.product(CODES, KINDS, SIZES, (1, 3))):
        photometric, bits, signed = kind
        is_colour = photometric in ("RGB", "YBR_FULL", "PALETTE COLOR")
        if shutil.which(code.program) is None or bits > code.deepest or (signed and not code.signed):
            continue
        if is_colour and photometric not in code.colour:
            continue
        plain, packed = folder / f"plain-{number}.dcm", folder / f"packed-{number}.dcm"
        truth = written(plain, kind, size, count)
        code.encode(plain, packed)
        plain.unlink()
        others: list[Callable[[Path], Array]] = [by_gdcm, by_pydicom]
        if code.lossy:
            truth = by_own_decoder(packed)
        else:
            others.append(by_own_decoder)
        sign = " signed" if signed else ""
        name = f"{code.name}: {photometric} {bits} bits{sign} {size[0]} x {size[1]} {count} frames"
        yield Cell(name, packed, truth, LOSSY if code.lossy else 1 if bits > 8 else 0, tuple(others))
        packed.unlink()


def written(path: Path, kind: tuple[str, int, bool], size: tuple[int, int], count: int) -> Array:
    """An uncompressed object of speckle over blocks; the pictures that a reader must show, (N, H, W, 3)."""
    photometric, bits, signed = kind
    colour = photometric in ("RGB", "YBR_FULL")
    stored = smooth(count, 3 if colour else 1, size=size)
    stored = (stored // 2 + np.random.default_rng(1).integers(0, 96, stored.shape)).astype(np.uint8)
    if bits > 8:
        stored = (stored.astype(np.uint16) << (bits - 8)) | 5
    if signed:
        stored = (stored.astype(np.int32) - 20_000).astype(np.int16)
    ds = dataset(stored, photometric, uid.ExplicitVRLittleEndian, bits)
    ds.PixelRepresentation = int(signed)
    if colour:
        ds.PlanarConfiguration = 0
    if photometric == "PALETTE COLOR":
        truth = with_palette(ds, stored, bits, "<")
    elif photometric == "RGB":
        truth = stored
    elif photometric == "YBR_FULL":
        truth = np.stack([convert_color_space(frame, "YBR_FULL", "RGB") for frame in stored])
    else:
        truth = 255 - gray(stored) if photometric == "MONOCHROME1" else gray(stored)
    ds.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    save(path, ds, "explicit", "OW")
    return truth


def by_own_decoder(path: Path) -> Array:
    """The decoder that belongs to the encoder, as RGB."""
    syntax = pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID
    if syntax in uid.JPEG2000TransferSyntaxes:
        return by_pydicom(path)
    if syntax in (uid.HTJ2K, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL):
        return by_openjph(path)
    program = (
        "dcmdjpls" if syntax in (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
        else "dcmdrle" if syntax == uid.RLELossless
        else "dcmdjpeg" if syntax.is_encapsulated
        else "dcmconv"
    )  # fmt: skip
    plain = path.with_suffix(".plain")
    run(program, *(["+te"] if program == "dcmconv" else []), path, plain)
    return shown(pydicom.dcmread(plain))


def shown(ds: pydicom.Dataset) -> Array:
    """An uncompressed object as (N, H, W, 3) RGB."""
    if int(ds.get("PlanarConfiguration") or 0):
        planes = np.frombuffer(ds.PixelData, np.uint8)
        shape = int(ds.NumberOfFrames), 3, int(ds.Rows), int(ds.Columns)
        array = np.moveaxis(planes[: int(np.prod(shape))].reshape(shape), 1, -1)
    else:
        array = frames_of(ds)
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        return np.stack([pydicom.pixels.apply_color_lut(frame, ds) >> 8 for frame in array]).astype(np.uint8)
    if array.ndim == 3:
        return 255 - gray(array) if ds.PhotometricInterpretation == "MONOCHROME1" else gray(array)
    if ds.PhotometricInterpretation == "YBR_FULL":
        return np.stack([convert_color_space(frame, "YBR_FULL", "RGB") for frame in array])
    return array


def by_openjph(path: Path) -> Array:
    ds = pydicom.dcmread(path)
    frames = []
    for stream in generate_frames(ds.PixelData, number_of_frames=int(ds.NumberOfFrames)):
        source, target = path.with_suffix(".j2c"), path.with_suffix(".ppm" if ds.SamplesPerPixel == 3 else ".pgm")
        source.write_bytes(stream)
        run("ojph_expand", "-i", source, "-o", target)
        data = target.read_bytes()
        samples = int(ds.Rows) * int(ds.Columns) * int(ds.SamplesPerPixel)
        deep = ds.BitsAllocated == 16
        body = np.frombuffer(data[-samples * (2 if deep else 1) :], ">u2" if deep else "u1")
        frames.append(body.astype(np.uint16 if deep else np.uint8).reshape(int(ds.Rows), int(ds.Columns), -1).squeeze())
    ds.PixelData, ds.PlanarConfiguration = np.stack(frames).tobytes(), 0
    return shown(ds)


# Fragments and offset tables ----------------------------------------------------------------------------------

STREAMS: dict[str, str] = {
    "JPEG baseline": uid.JPEGBaseline8Bit,
    "JPEG lossless": uid.JPEGLosslessSV1,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG 2000": uid.JPEG2000Lossless,
    "RLE": uid.RLELossless,
}
TABLES = ("none", "basic", "extended", "zeros", "shifted")


def fragment_cells(folder: Path) -> Iterator[Cell]:
    """Three frames, cut into fragments, under each kind of offset table, with NumberOfFrames and without."""
    truth = gray(smooth(3, 1))
    ways = itertools.product(STREAMS.items(), (1, 2, 5), TABLES, (True, False))
    for number, ((name, syntax), cuts, table, stated) in enumerate(ways):
        if syntax == uid.JPEGLosslessSV1 and shutil.which("dcmcjpeg") is None:
            continue
        path = folder / f"fragments-{number}.dcm"
        ds = dataset(smooth(3, 1), "MONOCHROME2", uid.ExplicitVRLittleEndian, 8)
        streams = compressed(ds, syntax, folder)
        pieces, first = cut(streams, cuts)
        ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
        offsets = positions(pieces, first)
        if table == "extended":
            ds.ExtendedOffsetTable = struct.pack(f"<{len(offsets)}Q", *offsets)
            ds.ExtendedOffsetTableLengths = struct.pack(f"<{len(streams)}Q", *map(len, streams))
        wrong = {"zeros": [0] * 3, "shifted": [offset + 8 for offset in offsets]}
        listed = wrong.get(table, offsets if table == "basic" else [])
        ds.PixelData = item(struct.pack(f"<{len(listed)}I", *listed)) + b"".join(map(item, pieces))
        if not stated:
            del ds.NumberOfFrames
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        ds.save_as(path, enforce_file_format=True)
        lossy = syntax == uid.JPEGBaseline8Bit
        named = f"{name} in fragments: {cuts} a frame, table {table}, {'' if stated else 'no '}NumberOfFrames"
        pictures = np.stack([np.asarray(Image.open(io.BytesIO(s)).convert("RGB")) for s in streams]) if lossy else truth
        yield Cell(named, path, pictures, LOSSY if lossy else 0, (by_gdcm,))
        path.unlink()


def compressed(ds: pydicom.Dataset, syntax: str, folder: Path) -> list[bytes]:
    """A code stream for each of three frames."""
    stored = smooth(3, 1)
    if syntax == uid.JPEGBaseline8Bit:
        buffers = [io.BytesIO() for _ in stored]
        for picture, buffer in zip(stored, buffers, strict=True):
            Image.fromarray(picture).save(buffer, "JPEG", quality=95)
        return [buffer.getvalue() for buffer in buffers]
    plain, packed = folder / "whole.dcm", folder / "whole-packed.dcm"
    ds.PixelData = stored.tobytes()
    if syntax == uid.JPEGLosslessSV1:
        save(plain, ds, "explicit", "OW")
        run("dcmcjpeg", "+e1", plain, packed)
        ds = pydicom.dcmread(packed)
    else:
        ds.compress(syntax, generate_instance_uid=False)
    items = io.BytesIO(ds.PixelData)
    parse_basic_offsets(items)
    return list(generate_fragments(items))


def cut(streams: Sequence[bytes], cuts: int) -> tuple[list[bytes], list[int]]:
    """Fragments of an even length, and the number of each frame's first."""
    pieces: list[bytes] = []
    first: list[int] = []
    for stream in streams:
        first.append(len(pieces))
        size = max(2, -(-len(stream) // cuts // 2) * 2)
        pieces += [stream[at : at + size] for at in range(0, len(stream), size)]
    return [piece + b"\0" * (len(piece) % 2) for piece in pieces], first


def positions(pieces: Sequence[bytes], first: Sequence[int]) -> list[int]:
    """Bytes from the first fragment's item to each frame's (PS3.5 A.4)."""
    ends: list[Any] = [0, *itertools.accumulate(len(piece) + 8 for piece in pieces)]
    return [ends[number] for number in first]


def item(data: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(data)) + data
