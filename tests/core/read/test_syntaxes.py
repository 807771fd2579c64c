"""Every pixel encoding of DICOM that ultrasound comes in is really decoded, and to the right picture.

`streams/` holds what no wheel can encode: HTJ2K code streams by OpenJPH and films by FFmpeg, of `speckle` pictures.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import gdcm
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import convert_color_space

from usfmae.core.config import ReadSettings
from usfmae.core.read import Unreadable, identify, read
from usfmae.core.read.discover import Candidate, Identified
from usfmae.core.types import Frame

from .conftest import SECRET, speckle

MakeDicom = Callable[..., Path]
STREAMS = Path(__file__).parent / "streams"
ALL = ReadSettings(fps=1000)
COLOUR = np.stack([speckle(seed=i) for i in range(3)], 2)  # (H, W, 3) RGB, as in the streams
DEEP = (speckle().astype(np.uint16) << 4) + 5  # (H, W), 12 bits


def frames(path: Path, settings: ReadSettings = ALL, notes: set[str] | None = None) -> list[Frame]:
    found = identify(Candidate.of(path), SECRET, settings)
    assert isinstance(found, Identified), found
    return list(read(found.scan, settings, notes))


def encoded(make: MakeDicom, picture: np.ndarray, stream: bytes, syntax: str, **elements: object) -> Path:
    """A single frame object of `picture`'s shape that holds `stream`."""
    path = make(picture[None], "encoded", **elements)
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
    ds.PixelData = encapsulate([stream])
    ds.save_as(path)
    return path


def shown(picture: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) -> (H, W, 3)."""
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2)


def scaled(deep: np.ndarray) -> np.ndarray:
    """(H, W) of any depth -> the 8 bits that a window over its whole range shows."""
    return np.floor((deep - deep.min()) / np.ptp(deep) * 255 + 0.5)


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian,
               uid.DeflatedExplicitVRLittleEndian],
    ids=["implicit", "explicit", "big-endian", "deflated"],
)  # fmt: skip
@pytest.mark.parametrize("meta", [True, False], ids=["meta", "bare"])
def test_uncompressed_in_either_byte_order_with_and_without_a_file_header(
    make_dicom: MakeDicom, syntax: str, meta: bool
) -> None:
    if not meta and syntax == uid.DeflatedExplicitVRLittleEndian:
        pytest.skip("nothing but the file header tells that a dataset is deflated")
    order = ">u2" if syntax == uid.ExplicitVRBigEndian else "<u2"
    gray = make_dicom(DEEP[None].astype(order), "gray", syntax, BitsStored=12, HighBit=11)
    colour = make_dicom(np.stack([COLOUR, COLOUR[::-1]]), "colour", syntax, FrameTime=40.0)
    for path in (gray, colour):
        if not meta:
            ds = pydicom.dcmread(path)
            implicit, little = ds.original_encoding
            bare = pydicom.Dataset({element.tag: element for element in ds})
            bare.save_as(path, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    assert np.abs(frames(gray)[0].pixels[..., 0] - scaled(DEEP)).max() <= 1
    assert np.array_equal(frames(colour)[1].pixels, COLOUR[::-1])


def test_implicit_vrs_in_a_file_that_declares_explicit_ones(make_dicom: MakeDicom) -> None:
    path = make_dicom(COLOUR[None], "lying", uid.ImplicitVRLittleEndian)
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    pydicom.dcmwrite(path, ds, implicit_vr=True, little_endian=True, force_encoding=True)
    assert np.array_equal(frames(path)[0].pixels, COLOUR)


def test_samples_by_plane(make_dicom: MakeDicom) -> None:
    path = make_dicom(COLOUR[None], "planar", PlanarConfiguration=1, PixelData=COLOUR.transpose(2, 0, 1).tobytes())
    assert np.array_equal(frames(path)[0].pixels, COLOUR)


def test_frames_of_an_odd_length_in_big_endian_words(make_dicom: MakeDicom) -> None:
    pictures = np.stack([speckle(seed=n)[:47, :63] for n in range(3)])
    whole = pictures.tobytes() + b"\0"
    words = np.frombuffer(whole, "<u2").astype(">u2").tobytes()
    path = make_dicom(pictures, "odd", uid.ExplicitVRBigEndian, PixelData=words)
    ds = pydicom.dcmread(path)
    ds["PixelData"].VR = "OW"
    ds.save_as(path)
    assert [np.array_equal(frame.pixels[..., 0], pictures[n]) for n, frame in enumerate(frames(path))] == [True] * 3


@pytest.mark.parametrize("stated", [True, False])
def test_an_rle_frame_in_several_fragments_is_one_frame(make_dicom: MakeDicom, stated: bool) -> None:
    pictures = np.stack([speckle(seed=n) for n in range(3)])
    path = make_dicom(pictures, "rle")
    ds = pydicom.dcmread(path)
    ds.compress(uid.RLELossless, generate_instance_uid=False)
    whole = list(generate_frames(ds.PixelData, number_of_frames=3))
    ds.PixelData = encapsulate([frame[at : at + 500] for frame in whole for at in range(0, len(frame), 500)])
    if not stated:
        del ds.NumberOfFrames
    ds.save_as(path)
    assert [np.array_equal(frame.pixels[..., 0], pictures[n]) for n, frame in enumerate(frames(path))] == [True] * 3


def test_jpeg_of_twelve_bits_is_refused_by_its_name(make_dicom: MakeDicom) -> None:
    buffer = io.BytesIO()
    Image.fromarray(speckle()).save(buffer, "JPEG")
    stream = buffer.getvalue().replace(b"\xff\xc0\x00\x0b\x08", b"\xff\xc1\x00\x0b\x0c", 1)
    path = encoded(make_dicom, DEEP, stream, uid.JPEGExtended12Bit, BitsStored=12, HighBit=11)
    with pytest.raises(Unreadable) as error:
        frames(path)
    assert error.value.reason == "unsupported-jpeg-12-bit"


def test_monochrome1_is_turned_round_and_a_window_is_applied(make_dicom: MakeDicom) -> None:
    shallow = make_dicom(speckle()[None], "m1", PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(frames(shallow)[0].pixels[..., 2], 255 - speckle())
    deep = make_dicom(DEEP[None], "m1-16", PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    assert np.abs(frames(deep)[0].pixels[..., 0] - (255 - scaled(DEEP))).max() <= 1
    low, high = 1000, 2000
    windowed = make_dicom(DEEP[None], "m2-16", WindowCenter=(low + high) / 2, WindowWidth=high - low)
    expected = np.clip((DEEP.astype(float) - low) / (high - low) * 255, 0, 255)
    assert np.abs(frames(windowed)[0].pixels[..., 0] - expected).max() <= 1


def palette(entries: int, bits: int) -> tuple[dict[str, object], np.ndarray]:
    """The elements of a colour table and its (entries, 3) colours in 8 bits."""
    table = np.random.default_rng(1).integers(0, 1 << bits, (entries, 3)).astype(np.uint16)
    elements: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for column, name in enumerate(("Red", "Green", "Blue")):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [entries, 0, bits]
        values = table[:, column].astype(np.uint8) if bits == 8 else table[:, column]
        elements[f"{name}PaletteColorLookupTableData"] = values.tobytes()
    return elements, (table >> (bits - 8)).astype(np.uint8)


@pytest.mark.parametrize(("entries", "bits"), [(256, 8), (256, 16), (4096, 16)])
def test_palettes_of_8_and_16_bits(make_dicom: MakeDicom, entries: int, bits: int) -> None:
    elements, colours = palette(entries, bits)
    indices = DEEP if entries > 256 else speckle()
    (frame,) = frames(make_dicom(indices[None], **elements))
    assert np.array_equal(frame.pixels, colours[indices])


def test_a_palette_of_16_bits_that_holds_8_is_not_black(make_dicom: MakeDicom) -> None:
    elements, _ = palette(256, 16)
    ramp = np.arange(256, dtype=np.uint16)
    elements |= {f"{name}PaletteColorLookupTableData": ramp.tobytes() for name in ("Red", "Green", "Blue")}
    (frame,) = frames(make_dicom(speckle()[None], **elements))
    assert np.array_equal(frame.pixels[..., 1], speckle())


def test_ybr_full_and_422_uncompressed(make_dicom: MakeDicom) -> None:
    ybr = convert_color_space(COLOUR, "RGB", "YBR_FULL")
    ybr[:, 1::2, 1:] = ybr[:, ::2, 1:]  # two pixels share their colour
    expected = convert_color_space(ybr, "YBR_FULL", "RGB")
    (full,) = frames(make_dicom(ybr[None], "full", PhotometricInterpretation="YBR_FULL"))
    assert np.array_equal(full.pixels, expected)
    packed = np.stack([ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], 2)  # PS3.3 C.7.6.3.1.2
    halved = make_dicom(ybr[None], "422", PhotometricInterpretation="YBR_FULL_422", PixelData=packed.tobytes())
    assert np.array_equal(frames(halved)[0].pixels, expected)


LOSSLESS = {
    "rle": uid.RLELossless,
    "jpeg-ls": uid.JPEGLSLossless,
    "jpeg-2000": uid.JPEG2000Lossless,  # RGB becomes YBR_RCT
}


@pytest.mark.parametrize("syntax", LOSSLESS.values(), ids=LOSSLESS)
@pytest.mark.parametrize("picture", [speckle(), DEEP, COLOUR], ids=["8-bit", "16-bit", "colour"])
def test_lossless_codecs_in_every_depth(make_dicom: MakeDicom, syntax: str, picture: np.ndarray) -> None:
    path = make_dicom(picture[None])
    ds = pydicom.dcmread(path)
    ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(path)
    (frame,) = frames(path)
    if picture is DEEP:
        assert np.abs(frame.pixels[..., 0] - scaled(DEEP)).max() <= 1
    else:
        assert np.array_equal(frame.pixels, shown(picture))


@pytest.mark.parametrize("process", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1"])
@pytest.mark.parametrize("picture", [speckle(), DEEP, COLOUR], ids=["8-bit", "16-bit", "colour"])
def test_jpeg_lossless(make_dicom: MakeDicom, tmp_path: Path, process: str, picture: np.ndarray) -> None:
    path = make_dicom(picture[None])
    reader, writer, change = gdcm.ImageReader(), gdcm.ImageWriter(), gdcm.ImageChangeTransferSyntax()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, process)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(tmp_path / "lossless"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert "Lossless" in pydicom.dcmread(tmp_path / "lossless").file_meta.TransferSyntaxUID.name
    (frame,) = frames(tmp_path / "lossless")
    if picture is DEEP:
        assert np.abs(frame.pixels[..., 0] - scaled(DEEP)).max() <= 1
    else:
        assert np.array_equal(frame.pixels, shown(picture))


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422", "RGB"])
def test_jpeg_baseline_in_colour(make_dicom: MakeDicom, photometric: str) -> None:
    buffer = io.BytesIO()
    picture = cv2.resize(COLOUR, (256, 192), interpolation=cv2.INTER_CUBIC)
    options = {"keep_rgb": True} if photometric == "RGB" else {"subsampling": 1 if photometric.endswith("422") else 0}
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, **options)
    path = encoded(make_dicom, picture, buffer.getvalue(), uid.JPEGBaseline8Bit, PhotometricInterpretation=photometric)
    notes: set[str] = set()
    (frame,) = frames(path, notes=notes)
    assert not notes
    assert np.abs(frame.pixels.astype(int) - picture).mean() < 4


def test_jpeg_baseline_in_gray(make_dicom: MakeDicom) -> None:
    buffer = io.BytesIO()
    Image.fromarray(speckle()).save(buffer, "JPEG", quality=95)
    (frame,) = frames(encoded(make_dicom, speckle(), buffer.getvalue(), uid.JPEGBaseline8Bit))
    assert np.abs(frame.pixels[..., 0].astype(int) - speckle()).mean() < 3


@pytest.mark.parametrize(
    ("syntax", "options"),
    [(uid.JPEGLSNearLossless, {"jls_error": 2}), (uid.JPEG2000, {"j2k_cr": [4]})],
    ids=["jpeg-ls", "jpeg-2000"],  # RGB becomes YBR_ICT
)
def test_lossy_codecs_come_near(make_dicom: MakeDicom, syntax: str, options: dict[str, object]) -> None:
    path = make_dicom(COLOUR[None])
    ds = pydicom.dcmread(path)
    ds.compress(syntax, generate_instance_uid=False, **options)
    ds.save_as(path)
    assert np.abs(frames(path)[0].pixels.astype(int) - COLOUR).mean() < 3


@pytest.mark.parametrize(
    ("stream", "syntax", "photometric", "error"),
    [
        ("lossless.j2c", uid.HTJ2KLossless, "YBR_RCT", 0),
        ("lossless-rpcl.j2c", uid.HTJ2KLosslessRPCL, "YBR_RCT", 0),
        ("lossy.j2c", uid.HTJ2K, "YBR_ICT", 4),
    ],
)
def test_high_throughput_jpeg_2000(
    make_dicom: MakeDicom, stream: str, syntax: str, photometric: str, error: int
) -> None:
    data = (STREAMS / stream).read_bytes()
    (frame,) = frames(encoded(make_dicom, COLOUR, data, syntax, PhotometricInterpretation=photometric))
    assert np.abs(frame.pixels.astype(int) - COLOUR).mean() <= error


FILMS = [
    (uid.MPEG2MPML, "mpeg2.mpg"),
    (uid.MPEG2MPHL, "mpeg2.ts"),
    (uid.MPEG4HP41, "h264.mp4"),
    (uid.MPEG4HP41BD, "h264.ts"),
    (uid.MPEG4HP422D, "h264.264"),
    (uid.MPEG4HP423D, "h264.mp4"),
    (uid.MPEG4HP42STEREO, "h264.ts"),
    (uid.HEVCMP51, "hevc.mp4"),
    (uid.HEVCM10P51, "hevc.ts"),
]


@pytest.mark.parametrize(("syntax", "film"), FILMS, ids=lambda value: value if "." not in value[:2] else "")
@pytest.mark.parametrize("timed", [True, False], ids=["frame-time", "no-rate"])
def test_films_in_dicom(make_dicom: MakeDicom, syntax: str, film: str, timed: bool) -> None:
    """50 frames at 25 a second, a new picture every ten; with and without a time in the header."""
    path = make_dicom(np.zeros((50, 96, 128, 3), np.uint8), "film", **({"FrameTime": 40.0} if timed else {}))
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
    ds.PixelData = encapsulate([(STREAMS / film).read_bytes()], has_bot=False)
    ds.save_as(path)
    got = frames(path, ReadSettings(fps=3))
    # A program stream times some of its frames only; what FFmpeg makes of the others is a frame off.
    off = 1 if film == "mpeg2.mpg" and not timed else 0
    assert np.abs(np.array([f.index for f in got[:6]]) - [0, 9, 17, 25, 34, 42]).max() <= off
    assert [f.time for f in got[:6]] == pytest.approx([0.0, 0.36, 0.68, 1.0, 1.36, 1.68], abs=0.01)
    assert len(got) <= 6 + off
    for frame in got:
        picture = speckle(96, 128, seed=frame.index // 10)
        assert np.corrcoef(frame.pixels[..., 0].ravel(), picture.ravel())[0, 1] > 0.95


def test_a_film_whose_times_stand_still_is_read(make_dicom: MakeDicom) -> None:
    """Zeros in FrameTimeVector: the frames of the stream are there all the same."""
    header = {"FrameIncrementPointer": 0x00181065, "FrameTimeVector": [0.0, 40.0] * 25}
    path = make_dicom(np.zeros((50, 96, 128, 3), np.uint8), "film", **header)
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = uid.MPEG2MPHL
    ds.PixelData = encapsulate([(STREAMS / "mpeg2.ts").read_bytes()], has_bot=False)
    ds.save_as(path)
    assert frames(path, ReadSettings(fps=3))
