"""A decoder's success is not believed: interlaced clips, wrong tables, wrong labels, bad frames, missing counts."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from pydicom import uid
from pydicom.encaps import encapsulate

from usfmae.core.config import ReadSettings
from usfmae.core.read import RefusedScan, Unreadable, identify, read
from usfmae.core.read.discover import Candidate, Identified
from usfmae.core.types import Quarantined, Scan, Trail

from .conftest import SECRET, speckle

MakeDicom = Callable[..., Path]
STREAMS = Path(__file__).parent / "streams"
ALL = ReadSettings(fps=1000)
GRAY = np.stack([speckle(seed=k) for k in range(4)])
COLOUR = np.stack([np.stack([speckle(seed=3 * k + c) for c in range(3)], 2) for k in range(4)])


def frames(path: Path, failed: dict[int, str] | None = None, notes: set[str] | None = None) -> list[np.ndarray]:
    found = identify(Candidate.of(path), SECRET, ALL)
    assert isinstance(found, Identified), found
    return [frame.pixels for frame in read(found.scan, ALL, notes, failed)]


def jpeg(picture: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def with_pixels(path: Path, value: bytes, syntax: str = uid.JPEGBaseline8Bit, drop: tuple[str, ...] = ()) -> Path:
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
    ds.PixelData = value
    for name in drop:
        delattr(ds, name)
    ds.save_as(path)
    return path


# Interlaced ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["interlaced.mpg", "interlaced.mp4", "interlaced.ts"])
@pytest.mark.parametrize("program", [True, False])
def test_an_interlaced_clip_is_decoded_by_the_program_or_kept_back_by_its_name(
    name: str, program: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = Scan(STREAMS / name, "video", Trail("x"))
    if not program:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(Unreadable, match="interlaced"):
            list(read(scan, ALL))
        return
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg program")
    notes: set[str] = set()
    got = [frame.pixels for frame in read(scan, ALL, notes)]
    plain = ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    command = ["ffmpeg", "-v", "error", "-i", str(STREAMS / name), "-vf", "bwdif=mode=send_frame", *plain]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    assert np.array_equal(got, np.frombuffer(raw, np.uint8).reshape(-1, 48, 64, 3)) and notes == {"deinterlaced"}


@pytest.mark.parametrize("timed", [False, True])
def test_recordings_as_transport_streams_are_scans(tmp_path: Path, timed: bool) -> None:
    """AVCHD puts four bytes of time before each packet."""
    stream = (STREAMS / "h264.ts").read_bytes()
    packets = [stream[at : at + 188] for at in range(0, len(stream), 188)]
    (tmp_path / "00001.MTS").write_bytes(b"".join(bytes(4 * timed) + packet for packet in packets))
    found = identify(Candidate.of(tmp_path / "00001.MTS"), SECRET, ALL)
    assert isinstance(found, Identified) and found.facts.format == "MPEG-TS"
    assert len(list(read(found.scan, ALL))) >= 49


def test_an_interlaced_stream_in_dicom_is_not_black(make_dicom: MakeDicom, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = (STREAMS / "interlaced.mpg").read_bytes()
    path = with_pixels(make_dicom(COLOUR, FrameTime=40.0), encapsulate([stream]), uid.MPEG2MPML)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unreadable, match="interlaced"):
        frames(path)


CANARY = """
import hashlib, sys
from pathlib import Path
from usfmae.core.config import ReadSettings
from usfmae.core.read import read
from usfmae.core.types import Scan, Trail
for path, kind in zip(sys.argv[1::2], sys.argv[2::2]):
    digest = hashlib.sha256()
    for frame in read(Scan(Path(path), kind, Trail("x")), ReadSettings(fps=1000)):
        digest.update(frame.pixels.tobytes())
    print(digest.hexdigest())
"""


def test_every_reader_fills_what_it_hands_out(make_dicom: MakeDicom, tmp_path: Path) -> None:
    """The heap is filled with one byte, then with another: pixels that nothing wrote would differ."""
    import SimpleITK

    files = {
        make_dicom(GRAY, "gray"): "dicom",
        with_pixels(make_dicom(COLOUR, "jpeg"), encapsulate([jpeg(c) for c in COLOUR])): "dicom",
        tmp_path / "a.png": "raster",
        tmp_path / "a.tif": "raster",
        tmp_path / "a.nii.gz": "volume",
        STREAMS / "h264.mp4": "video",
        STREAMS / "mpeg2.mpg": "video",
        STREAMS / "hevc.mp4": "video",
    }
    if shutil.which("ffmpeg"):
        files[STREAMS / "interlaced.mp4"] = "video"
    Image.fromarray(COLOUR[0]).save(tmp_path / "a.png")
    Image.fromarray(GRAY[0].astype(np.uint16) * 200).save(tmp_path / "a.tif")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(GRAY), str(tmp_path / "a.nii.gz"))
    command = [sys.executable, "-c", CANARY, *(str(part) for pair in files.items() for part in pair)]
    ends = []
    for canary in ("90", "165"):
        done = subprocess.run(
            command,
            env={"MALLOC_PERTURB_": canary, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        ends.append(done.stdout)
    assert ends[0] == ends[1] and len(ends[0].split()) == len(files)


# DICOM --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["none", "zeros", "shifted"])
@pytest.mark.parametrize("stated", [4, 2, None])
def test_frames_are_found_whatever_the_tables_say(make_dicom: MakeDicom, table: str, stated: int | None) -> None:
    whole = encapsulate([jpeg(g) for g in GRAY], has_bot=False)[8:]
    offsets = {"none": b"", "zeros": bytes(16), "shifted": struct.pack("<4I", 2, 40, 80, 120)}[table]
    head = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(offsets)) + offsets
    elements = {} if stated is None else {"NumberOfFrames": stated}
    path = make_dicom(GRAY, FrameTime=40.0, **elements)
    with_pixels(path, head + whole, drop=("NumberOfFrames",) if stated is None else ())
    got = frames(path)
    assert len(got) == 4
    for frame, picture in zip(got, GRAY, strict=True):
        assert np.array_equal(frame[..., 0], np.asarray(Image.open(io.BytesIO(jpeg(picture)))))


def test_frames_in_several_fragments(make_dicom: MakeDicom) -> None:
    path = make_dicom(GRAY, FrameTime=40.0)
    with_pixels(path, encapsulate([jpeg(g) for g in GRAY], fragments_per_frame=3, has_bot=False))
    assert len(frames(path)) == 4


def test_one_bad_frame_costs_one_frame(make_dicom: MakeDicom) -> None:
    parts = [jpeg(g) for g in GRAY]
    parts[1] = bytes(400)
    failed: dict[int, str] = {}
    got = frames(with_pixels(make_dicom(GRAY, FrameTime=40.0), encapsulate(parts)), failed)
    assert len(got) == 3 and failed == {1: "undecodable"}


def test_frames_that_are_stated_and_not_there_are_counted(make_dicom: MakeDicom) -> None:
    path = make_dicom(GRAY, FrameTime=40.0, NumberOfFrames=6)
    failed: dict[int, str] = {}
    got = frames(with_pixels(path, encapsulate([jpeg(g) for g in GRAY])), failed)
    assert len(got) == 4 and failed == dict.fromkeys((4, 5), "missing-frame")


@pytest.mark.parametrize("encapsulated", [False, True])
def test_pixels_of_unknown_vr(make_dicom: MakeDicom, encapsulated: bool) -> None:
    path = make_dicom(GRAY, FrameTime=40.0)
    if encapsulated:
        with_pixels(path, encapsulate([jpeg(g) for g in GRAY]))
    data = path.read_bytes()
    at = data.index(b"\xe0\x7f\x10\x00O")
    path.write_bytes(data[: at + 4] + b"UN" + data[at + 6 :])
    got = np.stack(frames(path))[..., 0].astype(int)
    assert np.abs(got - GRAY).mean() < 4 if encapsulated else np.array_equal(got, GRAY)


@pytest.mark.parametrize("tint", [(1, 1, 1), (1, 0.93, 0.8), (1, 0.8, 0.55)])
@pytest.mark.parametrize("label", ["RGB", "YBR_FULL_422", "YBR_FULL"])
@pytest.mark.parametrize("rgb_inside", [False, True])
def test_jpegs_own_markers_decide_its_colours(
    make_dicom: MakeDicom, tint: tuple[float, ...], label: str, rgb_inside: bool
) -> None:
    picture = np.clip(speckle()[..., None] * 0.6 * np.array(tint) + 60, 0, 255).astype(np.uint8)
    stream = jpeg(picture, keep_rgb=True) if rgb_inside else jpeg(picture, subsampling=1)
    path = make_dicom(picture[None], PhotometricInterpretation=label)
    (got,) = frames(with_pixels(path, encapsulate([stream])))
    truth = np.asarray(Image.open(io.BytesIO(stream)).convert("RGB"))
    assert np.abs(got.astype(int) - truth).max() <= 3


@pytest.mark.parametrize("subsampled", [False, True])
def test_every_frame_of_an_uncompressed_ybr_clip(make_dicom: MakeDicom, subsampled: bool) -> None:
    """Whether chroma is sub-sampled is decided by the byte count; the label says it is, either way."""
    from pydicom.pixels import convert_color_space

    ybr = np.stack([convert_color_space(c, "RGB", "YBR_FULL") for c in COLOUR])
    ybr[:, :, 1::2, 1:] = ybr[:, :, ::2, 1:]
    path = make_dicom(ybr, FrameTime=40.0, PhotometricInterpretation="YBR_FULL_422")
    if subsampled:
        pairs = np.stack([ybr[:, :, ::2, 0], ybr[:, :, 1::2, 0], ybr[:, :, ::2, 1], ybr[:, :, ::2, 2]], -1)
        with_pixels(path, pairs.tobytes(), uid.ExplicitVRLittleEndian)
    truth = [convert_color_space(y, "YBR_FULL", "RGB") for y in ybr]
    assert np.array_equal(frames(path), truth)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize("bits", [8, 16])
def test_palettes_in_either_byte_order(make_dicom: MakeDicom, syntax: str, bits: int) -> None:
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    tables = {name: np.random.default_rng(k).integers(0, 256, 256) for k, name in enumerate(("Red", "Green", "Blue"))}
    elements: dict[str, object] = {}
    for name, table in tables.items():
        words = (table * 257).astype(f"{order}u2") if bits == 16 else table.astype(f"{order}u2")
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        elements[f"{name}PaletteColorLookupTableData"] = words.tobytes()
    path = make_dicom(GRAY, syntax=syntax, FrameTime=40.0, PhotometricInterpretation="PALETTE COLOR", **elements)
    truth = np.stack([table[GRAY] for table in tables.values()], -1)
    assert np.array_equal(frames(path), truth)


@pytest.mark.parametrize("windowed", [False, True])
def test_a_deep_clip_has_one_scale_for_all_its_frames(make_dicom: MakeDicom, windowed: bool) -> None:
    deep = np.stack([GRAY[0].astype(np.uint16), GRAY[0].astype(np.uint16) * 10])
    elements = {"WindowCenter": 1000, "WindowWidth": 2000} if windowed else {}
    got = frames(make_dicom(deep, FrameTime=500.0, BitsStored=12, HighBit=11, **elements))
    high = 2000 if windowed else int(deep.max())
    low = 0 if windowed else int(deep.min())
    truth = np.clip((deep.astype(float) - low) * 255 / (high - low) + 0.5, 0, 255).astype(np.uint8)
    assert np.abs(np.stack(got)[..., 0].astype(int) - truth).max() <= 1


def test_a_stack_of_deep_pages_has_one_scale_of_the_whole(tmp_path: Path) -> None:
    pages = [Image.fromarray(GRAY[0].astype(np.uint16) * factor) for factor in (1, 200)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    first, second = frames(tmp_path / "a.tif")
    assert first.max() <= 2 and second.max() == 255


def test_jpeg_xl_is_named_and_not_called_damage(make_dicom: MakeDicom) -> None:
    path = with_pixels(make_dicom(GRAY), encapsulate([b"\xff\x0a"] * 4), uid.MPEG2MPML)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.4.100", b"1.2.840.10008.1.2.4.110"))
    found = identify(Candidate.of(path), SECRET, ALL)
    assert isinstance(found, Quarantined) and found.reason == "unsupported-jpeg-xl"


# Stills -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [12, 16, 24, 32])
def test_icons_are_no_scans(tmp_path: Path, size: int) -> None:
    Image.fromarray(speckle(64, 64)[:size, :size]).save(tmp_path / "icon.png")
    found = identify(Candidate.of(tmp_path / "icon.png"), SECRET, ALL)
    assert isinstance(found, RefusedScan) and found.reason == "too-small"


def test_long_text_beside_a_picture_does_no_harm(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "x" * 2_000_000, zip=True)
    Image.fromarray(COLOUR[0]).save(tmp_path / "a.png", pnginfo=text)
    assert np.array_equal(frames(tmp_path / "a.png")[0], COLOUR[0])
