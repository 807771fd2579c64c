"""Volumes: equal to SimpleITK where both read, axes by their kind, and no other file of the machine through a header."""

from __future__ import annotations

import bz2
import gzip
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from usfmae.core.config.read import ReadSettings
from usfmae.core.read import RefusedScan, Unreadable, identify, read
from usfmae.core.read.discover import Candidate, Identified
from usfmae.core.types import Quarantined, Scan, Trail

SECRET = b"k" * 32
CLIP = np.random.default_rng(0).integers(0, 256, (5, 40, 48), np.uint8)


def frames(path: Path, member: str = "") -> np.ndarray:
    """(N, H, W, 3) of every frame, held while the others are read."""
    return np.stack([frame.pixels for frame in read(Scan(path, "volume", Trail("x"), member), ReadSettings())])


def gray(array: np.ndarray) -> np.ndarray:
    return np.repeat(array[..., None], 3, -1)


def nrrd(sizes: str, kinds: str, data: bytes, encoding: str = "raw", type_: str = "uint8", more: str = "") -> bytes:
    kinds = f"kinds: {kinds}\n" if kinds else ""
    head = f"NRRD0004\n# c\ntype: {type_}\ndimension: {len(sizes.split())}\nsizes: {sizes}\n{kinds}{more}"
    return head.encode() + f"encoding: {encoding}\n\n".encode() + data


def mha(sizes: str, data: bytes, more: str = "", type_: str = "MET_UCHAR", file: str = "LOCAL") -> bytes:
    head = f"ObjectType = Image\nNDims = {len(sizes.split())}\nDimSize = {sizes}\nElementType = {type_}\n{more}"
    return head.encode() + f"ElementDataFile = {file}\n".encode() + data


def nifti1(array: np.ndarray, code: int = 2, dims: tuple[int, ...] = (), intent: int = 0, end: str = "<") -> bytes:
    head = bytearray(352)
    sizes = dims or tuple(reversed(array.shape))
    struct.pack_into(end + "i", head, 0, 348)
    struct.pack_into(end + "8h", head, 40, len(sizes), *sizes, *[1] * (7 - len(sizes)))
    struct.pack_into(end + "h", head, 68, intent)
    struct.pack_into(end + "2h", head, 70, code, array.dtype.itemsize * 8)
    struct.pack_into(end + "f", head, 108, 352.0)
    head[344:348] = b"n+1\0"
    return bytes(head) + array.tobytes()


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii", ".nii.gz", ".mhd", ".nhdr"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_every_slice_is_what_simpleitk_reads(tmp_path: Path, suffix: str, dtype: type) -> None:
    import SimpleITK

    volume = (CLIP.astype(dtype) * (1 if dtype == np.uint8 else 7)).astype(dtype)
    path = tmp_path / f"v{suffix}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(volume), str(path), useCompression=suffix in (".mha", ".nhdr"))
    other = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).astype(np.float32)
    if dtype != np.uint8:  # one scale for the whole volume
        other = (other - other.min()) * (255 / (other.max() - other.min())) + 0.5
    np.testing.assert_array_equal(frames(path), gray(other.astype(np.uint8)))


def test_colour_that_itk_writes_as_a_vector(tmp_path: Path) -> None:
    import SimpleITK

    colour = np.random.default_rng(1).integers(0, 256, (4, 40, 48, 3), np.uint8)
    for suffix in (".mha", ".nrrd", ".nii"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(colour, isVector=True), str(tmp_path / f"c{suffix}"))
    for suffix in (".mha", ".nrrd"):
        np.testing.assert_array_equal(frames(tmp_path / f"c{suffix}"), colour)
    with pytest.raises(RefusedScan):  # NIfTI's vector is a displacement, not a colour
        frames(tmp_path / "c.nii")


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii", "hex"])
def test_encodings_of_nrrd(tmp_path: Path, encoding: str) -> None:
    raw = CLIP.tobytes()
    pack = {
        "raw": raw,
        "gzip": gzip.compress(raw[:3000]) + gzip.compress(raw[3000:]),
        "bzip2": bz2.compress(raw),
        "ascii": " ".join(map(str, raw)).encode(),
        "hex": raw.hex().encode(),
    }
    (tmp_path / "v.nrrd").write_bytes(nrrd("48 40 5", "domain domain list", pack[encoding], encoding))
    np.testing.assert_array_equal(frames(tmp_path / "v.nrrd"), gray(CLIP))


@pytest.mark.parametrize("attached", [True, False])
def test_lines_and_bytes_before_the_samples_are_skipped(tmp_path: Path, attached: bool) -> None:
    samples = b"one\ntwo\n" + b"#" * 5 + CLIP.tobytes()
    more = "line skip: 2\nbyte skip: 5\n" + ("" if attached else "data file: v.raw\n")
    (tmp_path / "v.nrrd").write_bytes(nrrd("48 40 5", "", samples if attached else b"", more=more))
    (tmp_path / "v.raw").write_bytes(samples)
    np.testing.assert_array_equal(frames(tmp_path / "v.nrrd"), gray(CLIP))


def test_big_endian_deep_samples(tmp_path: Path) -> None:
    deep = CLIP.astype(">u2") * 257
    (tmp_path / "v.mha").write_bytes(mha("48 40 5", deep.tobytes(), "BinaryDataByteOrderMSB = True\n", "MET_USHORT"))
    (tmp_path / "v.nrrd").write_bytes(nrrd("48 40 5", "", deep.tobytes(), type_="ushort", more="endian: big\n"))
    (tmp_path / "v.nii").write_bytes(nifti1(deep, 512, end=">"))
    for name in ("v.mha", "v.nrrd", "v.nii"):
        scaled = (CLIP.astype(np.float32) - CLIP.min()) * (255 / (float(CLIP.max()) - CLIP.min())) + 0.5
        np.testing.assert_array_equal(frames(tmp_path / name), gray(scaled.astype(np.uint8)))


def test_series_and_colour_are_found_wherever_they_stand(tmp_path: Path) -> None:
    colour = np.random.default_rng(2).integers(0, 256, (5, 40, 48, 3), np.uint8)
    files = {
        "list-last": (nrrd("48 40 5", "domain domain list", CLIP.tobytes()), gray(CLIP)),
        "list-first": (nrrd("5 48 40", "list domain domain", np.moveaxis(CLIP, 0, -1).tobytes()), gray(CLIP)),
        "time-between": (nrrd("48 5 40", "space time space", np.moveaxis(CLIP, 0, 1).tobytes()), gray(CLIP)),
        "colour-first": (nrrd("3 48 40 5", "RGB-color domain domain time", colour.tobytes()), colour),
        "colour-last": (nrrd("48 40 5 3", "domain domain time RGB-color", np.moveaxis(colour, 3, 0).tobytes()), colour),
        "no-kinds": (nrrd("48 40 5", "", CLIP.tobytes()), gray(CLIP)),
        "meta-list": (mha("5 48 40", np.moveaxis(CLIP, 0, -1).tobytes(), "Kinds = list domain domain\n"), gray(CLIP)),
    }
    for name, (data, pictures) in files.items():
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(frames(tmp_path / name), pictures, err_msg=name)


@pytest.mark.parametrize(
    "data",
    [
        nrrd("2 48 40", "complex domain domain", CLIP.tobytes()[:3840]),
        nrrd("2 48 40", "2-vector domain domain", CLIP.tobytes()[:3840]),
        nrrd("3 48 40", "HSV-color domain domain", CLIP.tobytes()[:5760]),
        nrrd("3 48 40", "vector domain domain", b"\0" * 4 * 5760, type_="float"),
        nrrd("48 40", "domain list", CLIP.tobytes()[:1920]),
        mha("48 40", CLIP.tobytes()[:3840], "ElementNumberOfChannels = 2\n"),
        mha("48 40", CLIP.tobytes()[:1920], "UltrasoundImageType = RF_REAL\n"),
        nifti1(np.zeros((1, 5, 40, 48), np.float32), 16, (48, 40, 1, 1, 5), 1007),
        nifti1(np.zeros((40, 48), np.complex64), 32),
    ],
)
def test_what_is_neither_gray_nor_rgb_is_refused_by_rule(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "v").write_bytes(data)
    found = identify(Candidate.of(tmp_path / "v"), SECRET, ReadSettings())
    assert isinstance(found, RefusedScan) and found.reason in ("not-a-picture", "radio-frequency")


SECRET_FILE = "signing.pem"
SIZE = "NDims = 2\nDimSize = 64 64\nElementType = MET_UCHAR\n"
NRRD = "NRRD0004\ntype: uint8\ndimension: 2\nsizes: 64 64\nencoding: raw\n"
PAD = "Comment = " + "x" * 1500 + "\n"
HEADERS = {
    "absolute": "ObjectType = Image\n{SIZE}ElementDataFile = {path}\n",
    "colon": "ObjectType : Image\n{SIZE}ElementDataFile : {path}\n",
    "case": "ObjectType = Image\n{SIZE}elementdatafile={path}\n",
    "blanks": "ObjectType = Image\n{SIZE} \t ElementDataFile   =   {path}  \n",
    "beyond": "ObjectType = Image\n" + PAD * 60 + "{SIZE}ElementDataFile = {path}\n",
    "bare-cr": "ObjectType = Image\n{SIZE}Comment = a\rElementDataFile = {path}\r\nElementDataFile = LOCAL\n",
    "list": "ObjectType = Image\n{SIZE}ElementDataFile = LIST 2\n{path}\n",
    "pattern": "ObjectType = Image\n{SIZE}ElementDataFile = {name}%s 1 1 1\n",
    "parent": "ObjectType = Image\n{SIZE}ElementDataFile = ../{name}\n",
    "link": "ObjectType = Image\n{SIZE}ElementDataFile = link.raw\n",
    "folder": "ObjectType = Image\n{SIZE}ElementDataFile = inner\n",
    "pipe": "ObjectType = Image\n{SIZE}ElementDataFile = pipe\n",
    "nrrd": "{NRRD}data file: {path}\n\n",
    "nrrd-case": "{NRRD}Data  File:{path}\n\n",
    "nrrd-one-word": "{NRRD}datafile: {path}\n\n",
    "nrrd-beyond": "NRRD0004\n" + ("# " + "x" * 1500 + "\n") * 60 + "type: uint8\n{REST}data file: {path}\n\n",
    "nrrd-cr": "{NRRD}\rdata file: {path}\n\n",
    "nrrd-list": "{NRRD}data file: LIST\n{path}\n",
    "nrrd-pattern": "{NRRD}data file: {path}%d 1 1 1\n\n",
    "nrrd-link": "{NRRD}data file: link.raw\n\n",
}


@pytest.mark.parametrize("form", HEADERS)
@pytest.mark.parametrize("zipped", [False, True])
def test_no_header_reads_another_file_of_the_machine(tmp_path: Path, form: str, zipped: bool) -> None:
    import os

    outside, share = tmp_path / SECRET_FILE, tmp_path / "share"
    outside.write_bytes(bytes(range(256)) * 16)
    share.mkdir()
    (share / "link.raw").symlink_to(outside)
    (share / "inner").mkdir()
    os.mkfifo(share / "pipe")
    text = HEADERS[form].format(SIZE=SIZE, NRRD=NRRD, REST=NRRD.split("\n", 2)[2], path=outside, name=SECRET_FILE)
    path, member = share / f"v.{'nhdr' if form.startswith('nrrd') else 'mhd'}", ""
    if zipped:
        path, member = share / "v.zip", f"in/{path.name}"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, text)
    else:
        path.write_text(text, newline="")
    found = identify(Candidate.of(path, member), SECRET, ReadSettings())
    assert isinstance(found, Quarantined), found
    assert found.reason in ("foreign-data-file", "no-data-file", "bad-header")
    with pytest.raises(Unreadable):
        frames(path, member)


def test_one_plain_name_in_the_same_folder_is_read_on_disk_and_in_an_archive(tmp_path: Path) -> None:
    header = mha("48 40 5", b"", "CompressedData = True\n", file="the data.zraw")
    (tmp_path / "v.mhd").write_bytes(header)
    (tmp_path / "the data.zraw").write_bytes(zlib.compress(CLIP.tobytes()))
    np.testing.assert_array_equal(frames(tmp_path / "v.mhd"), gray(CLIP))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a/v.mhd", header)
        archive.writestr("a/the data.zraw", zlib.compress(CLIP.tobytes()))
    np.testing.assert_array_equal(frames(tmp_path / "z.zip", "a/v.mhd"), gray(CLIP))


def test_equal_headers_over_different_pixels_are_two_scans(tmp_path: Path) -> None:
    ids = set()
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "v.mhd").write_bytes(mha("48 40", b"", file="v.raw"))
        (folder / "v.raw").write_bytes(CLIP[number].tobytes())
        found = identify(Candidate.of(folder / "v.mhd"), SECRET, ReadSettings())
        assert isinstance(found, Identified)
        ids.add(found.scan.trail.id)
    assert len(ids) == 2


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.mha", "z.mha", "v.nrrd", "z.nrrd"])
def test_half_a_volume_is_not_kept_half_black(tmp_path: Path, name: str) -> None:
    raw = CLIP.tobytes()
    whole = {
        "v.nii": nifti1(CLIP),
        "v.nii.gz": gzip.compress(nifti1(CLIP)),
        "v.mha": mha("48 40 5", raw),
        "z.mha": mha("48 40 5", zlib.compress(raw), "CompressedData = True\n"),
        "v.nrrd": nrrd("48 40 5", "", raw),
        "z.nrrd": nrrd("48 40 5", "", gzip.compress(raw), "gzip"),
    }[name]
    (tmp_path / name).write_bytes(whole)
    assert len(frames(tmp_path / name)) == 5
    (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(Unreadable, match="truncated"):
        frames(tmp_path / name)


def test_a_flipped_bit_in_a_packed_volume_is_noticed(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(nifti1(CLIP)))
    packed[-6] ^= 1  # in the check sum
    (tmp_path / "v.nii.gz").write_bytes(bytes(packed))
    with pytest.raises(Unreadable, match="undecodable"):
        frames(tmp_path / "v.nii.gz")


def test_deep_volumes_have_one_scale_over_all_slices(tmp_path: Path) -> None:
    deep = np.stack([np.full((40, 48), 100), np.full((40, 48), 1100)]).astype(np.int16)
    deep[:, :20] = np.linspace(0, 1100, 48)
    (tmp_path / "v.nii").write_bytes(nifti1(deep, 4))
    first, second = frames(tmp_path / "v.nii")
    assert first[30, 0, 0] == round(100 / 1100 * 255) and second[30, 0, 0] == 255
