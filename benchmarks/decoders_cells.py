"""Cells of the matrix of `decoders.py`: files written here, each with the pictures that a reader must show."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, convert_color_space

ROWS, COLUMNS = 48, 64
STREAMS = Path(__file__).parent.parent / "tests" / "core" / "read" / "streams"
NATIVE = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
}
PACKED = {"rle": uid.RLELossless, "jpeg-ls": uid.JPEGLSLossless, "jpeg-2000": uid.JPEG2000Lossless}
PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422")
Array = NDArray[Any]


@dataclass(frozen=True)
class Cell:
    """One file, the pictures it holds (N, H, W, 3), and how far off a picture may be in gray levels."""

    name: str
    path: Path
    truth: Array
    tolerance: int
    others: tuple[Callable[[Path], Array], ...]


def smooth(count: int, samples: int, seed: int = 0, size: tuple[int, int] = (ROWS, COLUMNS)) -> Array:
    """(N, H, W[, C]) uint8, different in every frame and sample."""
    random = np.random.default_rng(seed)
    rows, columns = size
    coarse = random.integers(0, 256, (count, -(-rows // 8), -(-columns // 8), samples), np.uint8)
    fine = coarse.repeat(8, 1).repeat(8, 2)[:, :rows, :columns]
    return fine[..., 0] if samples == 1 else fine


def gray(deep: Array) -> Array:
    """(N, H, W) of any depth -> (N, H, W, 3) on the one scale of the whole clip."""
    if deep.dtype != np.uint8:
        low, high = float(deep.min()), float(deep.max())
        deep = ((deep.astype(np.float64) - low) * (255 / (high - low)) + 0.5).astype(np.uint8)
    return np.repeat(deep[..., None], 3, -1)


# DICOM --------------------------------------------------------------------------------------------------------


def dataset(array: Array, photometric: str, syntax: str, bits: int) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uid.UltrasoundMultiFrameImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    ds.Modality, ds.PatientID, ds.FrameTime = "US", "SYNTHETIC", "400"
    ds.NumberOfFrames, ds.Rows, ds.Columns = array.shape[:3]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = (3 if array.ndim == 4 else 1), photometric
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = array.dtype.itemsize * 8, bits, bits - 1
    ds.PixelRepresentation = 0
    return ds


def dicom_cells(folder: Path) -> Iterator[Cell]:
    axes = itertools.product(
        PHOTOMETRIC, {**NATIVE, **PACKED, "jpeg": uid.JPEGBaseline8Bit}, (1, 3), (8, 12, 16), (0, 1)
    )
    for number, (photometric, syntax, count, bits, planar) in enumerate(axes):
        colour = photometric in ("RGB", "YBR_FULL", "YBR_FULL_422")
        if (planar and not colour) or (bits > 8 and (colour or syntax == "jpeg")):
            continue
        if (planar or photometric == "YBR_FULL_422") and syntax in PACKED:
            continue
        if syntax == "jpeg" and (planar or photometric in ("PALETTE COLOR", "YBR_FULL")):
            continue
        if photometric == "YBR_FULL_422" and planar:
            continue
        for vr in ("OW", "UN") if syntax in ("explicit", "jpeg") else ("OW",):
            name = f"{photometric} {syntax} {count} frames {bits} bits planar {planar} {vr}"
            path = folder / f"{number}-{vr}.dcm"
            truth, tolerance = written(path, photometric, syntax, count, bits, planar, vr)
            yield Cell(name, path, truth, tolerance, (by_gdcm, by_pydicom))


def written(
    path: Path, photometric: str, syntax: str, count: int, bits: int, planar: int, vr: str
) -> tuple[Array, int]:
    """Write one object; the pictures that a reader must show, and by how much it may be off."""
    colour = photometric in ("RGB", "YBR_FULL", "YBR_FULL_422")
    stored = smooth(count, 3 if colour else 1)
    if photometric == "YBR_FULL_422":
        stored[:, :, 1::2, 1:] = stored[:, :, ::2, 1:]
    if bits > 8:
        stored = (stored.astype(np.uint16) << (bits - 8)) | 5
    ds = dataset(stored, photometric, {**NATIVE, **PACKED, "jpeg": uid.JPEGBaseline8Bit}[syntax], bits)
    order = ">" if syntax == "big" else "<"
    if colour:
        ds.PlanarConfiguration = planar
    if photometric == "PALETTE COLOR":
        truth = with_palette(ds, stored, bits, order)
    elif colour:
        truth = (
            stored if photometric == "RGB" else np.stack([convert_color_space(s, "YBR_FULL", "RGB") for s in stored])
        )
    else:
        truth = gray(stored) if photometric == "MONOCHROME2" else 255 - gray(stored)
    tolerance = 1 if bits > 8 else 0
    if syntax == "jpeg":
        truth, tolerance = with_jpeg(ds, stored, photometric), 3
    elif photometric == "YBR_FULL_422":
        pairs = [stored[:, :, ::2, 0], stored[:, :, 1::2, 0], stored[:, :, ::2, 1], stored[:, :, ::2, 2]]
        ds.PixelData = swapped(np.stack(pairs, -1).tobytes(), order)
    else:
        laid = np.moveaxis(stored, -1, 1) if planar else stored
        raw = laid.astype(stored.dtype.newbyteorder(order)).tobytes()
        ds.PixelData = swapped(raw, order) if bits == 8 else raw
    save(path, ds, syntax, vr)
    return truth, tolerance


def swapped(raw: bytes, order: str) -> bytes:
    """Bytes as words of 16 bits in the file's order (PS3.5 annex D)."""
    return np.frombuffer(raw, "<u2").astype(f"{order}u2").tobytes() if order == ">" else raw


def with_palette(ds: Dataset, stored: Array, bits: int, order: str) -> Array:
    count = 1 << bits
    tables = [np.random.default_rng(k).integers(0, 256, count) for k in range(3)]
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [count % 65536, 0, 16])
        setattr(ds, f"{name}PaletteColorLookupTableData", (table * 257).astype(f"{order}u2").tobytes())
    return np.stack([table[stored] for table in tables], -1).astype(np.uint8)


def with_jpeg(ds: Dataset, stored: Array, photometric: str) -> Array:
    streams = []
    for picture in stored:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=95, keep_rgb=photometric == "RGB")
        streams.append(buffer.getvalue())
    ds.PixelData = encapsulate(streams)
    shown = np.stack([np.asarray(Image.open(io.BytesIO(stream)).convert("RGB")) for stream in streams])
    return 255 - shown if photometric == "MONOCHROME1" else shown


def save(path: Path, ds: Dataset, syntax: str, vr: str) -> None:
    ds["PixelData"].VR = "OB" if syntax == "jpeg" else "OW"
    if syntax in PACKED:
        target, ds.file_meta.TransferSyntaxUID = ds.file_meta.TransferSyntaxUID, uid.ExplicitVRLittleEndian
        ds.compress(target, generate_instance_uid=False)
    ds.save_as(path, enforce_file_format=True)
    if vr == "UN":
        data = path.read_bytes()
        at = data.rindex(b"\xe0\x7f\x10\x00O")
        path.write_bytes(data[: at + 4] + b"UN" + data[at + 6 :])


def by_pydicom(path: Path) -> Array:
    """pydicom's pixel_array with its own conversions, as RGB."""
    ds = pydicom.dcmread(path)
    array = ds.pixel_array
    array = array if int(ds.NumberOfFrames) > 1 else array[None]
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        return (apply_color_lut(array, ds) >> 8).astype(np.uint8)
    if array.ndim == 3:
        return 255 - gray(array) if ds.PhotometricInterpretation == "MONOCHROME1" else gray(array)
    return array


def by_gdcm(path: Path) -> Array:
    """GDCM through SimpleITK, as RGB."""
    array = by_simpleitk(path)
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    if array.ndim == 2 or (array.ndim == 3 and int(ds.SamplesPerPixel) == 3):
        array = array[None]
    if array.ndim == 3:
        return 255 - gray(array) if ds.PhotometricInterpretation == "MONOCHROME1" else gray(array)
    return array if array.dtype == np.uint8 else (array >> 8).astype(np.uint8)


def by_simpleitk(path: Path) -> Array:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))))


# Volumes and clips --------------------------------------------------------------------------------------------


def volume_cells(folder: Path) -> Iterator[Cell]:
    import SimpleITK

    types = ("u1", "i2", "u2", "i4", "f4")
    for suffix, code, packed in itertools.product((".mha", ".mhd", ".nrrd", ".nhdr", ".nii", ".nii.gz"), types, (0, 1)):
        if packed and suffix in (".nii", ".nii.gz"):
            continue
        volume = smooth(3, 1).astype(code)
        path = folder / f"{code}-{packed}{suffix}"
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(volume), str(path), useCompression=bool(packed))
        other = (lambda place: gray(by_simpleitk(place)),)
        yield Cell(f"{suffix} {code} packed {packed}", path, gray(volume), 1 if code != "u1" else 0, other)
    for suffix in (".mha", ".nrrd"):
        colour = smooth(3, 3)
        path = folder / f"colour{suffix}"
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(colour, isVector=True), str(path))
        yield Cell(f"{suffix} colour", path, colour, 0, (by_simpleitk,))


def clip_cells() -> Iterator[Cell]:
    if shutil.which("ffmpeg") is None:
        return
    for path in sorted(STREAMS.iterdir()):
        if path.suffix in (".mp4", ".mov", ".mpg", ".ts"):
            truth = by_ffmpeg(path)
            # Decoders of cv2 and of the program round the conversion to RGB each in their own way.
            yield Cell(f"clip {path.name}", path, truth, 0 if "interlaced" in path.name else 4, ())


def by_ffmpeg(path: Path) -> Array:
    shape = json.loads(
        subprocess.run(
            ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "stream=width,height", "-of", "json",
             str(path)], capture_output=True, check=True,
        ).stdout
    )["streams"][0]  # fmt: skip
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-vf", "bwdif=mode=send_frame:deint=interlaced"]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, shape["height"], shape["width"], 3)
