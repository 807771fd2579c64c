"""DICOM: every syntax decodes as the reference does, only kept frames are decoded, rules refuse."""

from __future__ import annotations

import gc
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, convert_color_space, pixel_array
from pydicom.uid import (
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLETransferSyntaxes,
)

from usfmae.core.config import ReadSettings
from usfmae.core.read import discover, identify, read
from usfmae.core.read.discover import Candidate, Identified
from usfmae.core.types import Frame, Quarantined

from .conftest import SECRET, speckle

MakeDicom = Callable[..., Path]
ALL = ReadSettings(fps=1000)
PART_2 = ("1.2.840.10008.1.2.4.92", "1.2.840.10008.1.2.4.93")  # JPEG 2000 multi-component: nobody decodes it
SYNTAXES = [
    syntax
    for syntax in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes, *RLETransferSyntaxes)
    if syntax not in PART_2
]


def known(path: Path, settings: ReadSettings = ALL) -> Identified:
    found = identify(Candidate.of(path), SECRET, settings)
    assert isinstance(found, Identified), found
    return found


def frames(path: Path, settings: ReadSettings = ALL, notes: set[str] | None = None) -> list[Frame]:
    return list(read(known(path, settings).scan, settings, notes))


def colour_clip(count: int = 3) -> np.ndarray:
    return np.stack([np.repeat(speckle(seed=i)[..., None], 3, 2) for i in range(count)])


def test_the_wheels_own_ultrasound_equals_the_reference(wheel_dicoms: list[Path]) -> None:
    for path in wheel_dicoms:
        ds = pydicom.dcmread(path)
        reference = pixel_array(ds)
        if ds.PhotometricInterpretation == "PALETTE COLOR":
            reference = (apply_color_lut(reference, ds) >> 8).astype(np.uint8)
        reference = reference if reference.ndim == 4 else reference[None]
        assert np.array_equal(np.stack([f.pixels for f in frames(path)]), reference)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_who_takes_one_frame_ends_the_decoder_before_the_file(wheel_dicoms: list[Path]) -> None:
    (scan,) = discover(wheel_dicoms[:1], b"secret", ReadSettings())
    frames = read(scan, ReadSettings())
    assert next(frames).pixels.shape == (240, 320, 3)
    del frames
    gc.collect()


def test_all_real_dicoms_equal_their_reference_decoding(shared_data: Path) -> None:
    paths = sorted(p for p in (shared_data / "dicom_us").rglob("*") if p.is_file() and p.suffix != ".md")
    assert len(paths) == 21
    for path in paths:
        ds = pydicom.dcmread(path)
        got = frames(path)
        reference = pydicom.pixels.iter_pixels(path)
        for frame, array in zip(got, reference, strict=True):
            if ds.PhotometricInterpretation == "PALETTE COLOR":
                # pydicom reads the tables of a big endian file in the wrong order: the same object in little endian.
                twin = pydicom.dcmread(path.with_name(path.name.replace("_expb", "")))
                array = (apply_color_lut(array, twin) >> 8).astype(np.uint8)
            if array.ndim == 2:
                array = np.repeat(array[..., None], 3, 2)
            assert np.array_equal(frame.pixels, array), path.name


def jpeg_dicom(make_dicom: MakeDicom, declared: str) -> tuple[Path, np.ndarray]:
    """A JPEG Baseline object whose samples are YCbCr, declared as told; and its picture."""
    picture = np.repeat(speckle(96, 128)[..., None], 3, 2)
    picture[8:20, 8:20] = (200, 30, 30)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, subsampling=0)
    path = make_dicom(picture[None], "jpeg")
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    ds.PhotometricInterpretation = declared
    ds.PixelData = encapsulate([buffer.getvalue()])
    ds.save_as(path)
    return path, picture


def test_rgb_declared_over_ycbcr_is_noticed(make_dicom: MakeDicom) -> None:
    path, picture = jpeg_dicom(make_dicom, "RGB")
    notes: set[str] = set()
    (frame,) = frames(path, notes=notes)
    assert notes == {"colour-space-corrected"}
    assert np.abs(frame.pixels.astype(int) - picture).mean() < 4


def test_ycbcr_declared_over_rgb_is_noticed(make_dicom: MakeDicom) -> None:
    clip = colour_clip(1)
    notes: set[str] = set()
    (frame,) = frames(make_dicom(clip, PhotometricInterpretation="YBR_FULL"), notes=notes)
    assert notes == {"colour-space-corrected"}
    assert np.array_equal(frame.pixels, clip[0])


def test_honest_ycbcr_is_converted_without_a_note(make_dicom: MakeDicom) -> None:
    path, picture = jpeg_dicom(make_dicom, "YBR_FULL")
    notes: set[str] = set()
    (frame,) = frames(path, notes=notes)
    assert not notes
    assert np.abs(frame.pixels.astype(int) - picture).mean() < 4


def test_times_follow_the_increment_pointer(make_dicom: MakeDicom) -> None:
    vector = [0.0] + [100.0] * 4 + [500.0] + [100.0] * 4
    path = make_dicom(
        np.stack([speckle(seed=i) for i in range(10)]),
        FrameTime=1000.0,
        FrameTimeVector=vector,
        FrameIncrementPointer=0x00181065,
    )
    got = frames(path, ReadSettings(fps=3))
    assert [f.index for f in got] == [0, 4, 5, 6]
    assert [f.time for f in got] == pytest.approx([0.0, 0.4, 0.9, 1.0])
    path = make_dicom(np.stack([speckle(seed=i) for i in range(10)]), CineRate=10)
    assert [f.index for f in frames(path, ReadSettings(fps=5))] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("elements", "kept"),
    [
        ({"FrameTime": 100.0, "CineRate": 50}, [0, 2, 4, 6, 8]),  # without a pointer the frame's time goes first
        ({"CineRate": 10, "RecommendedDisplayFrameRate": 50}, [0, 2, 4, 6, 8]),
        ({"RecommendedDisplayFrameRate": 10}, [0, 2, 4, 6, 8]),
        ({"FrameTime": 0.0, "RecommendedDisplayFrameRate": 10}, [0, 2, 4, 6, 8]),  # a time of nothing is none
        ({"FrameTimeVector": [0.0, 5.0], "CineRate": 10}, [0, 2, 4, 6, 8]),  # a vector of another length neither
        ({"FrameIncrementPointer": 0x00180040, "CineRate": 10, "FrameTime": 1.0}, [0, 2, 4, 6, 8]),
    ],
)
def test_the_rate_comes_from_the_first_that_states_one(
    make_dicom: MakeDicom, elements: dict[str, object], kept: list[int]
) -> None:
    notes: set[str] = set()
    path = make_dicom(np.stack([speckle(seed=i) for i in range(10)]), **elements)
    assert [f.index for f in frames(path, ReadSettings(fps=5), notes)] == kept
    assert not notes


def test_slices_of_an_enhanced_volume_are_no_moments(make_dicom: MakeDicom) -> None:
    path = make_dicom(np.stack([speckle(seed=i) for i in range(10)]), SOPClassUID=pydicom.uid.EnhancedUSVolumeStorage)
    notes: set[str] = set()
    got = frames(path, ReadSettings(), notes)
    assert [(f.index, f.time) for f in got] == [(i, None) for i in range(10)]
    assert not notes
    assert [f.index for f in frames(path, ReadSettings(slices=2))] == [2, 7]


def test_a_clip_without_a_rate_gets_the_declared_default_and_a_note(make_dicom: MakeDicom) -> None:
    path = make_dicom(np.stack([speckle(seed=i) for i in range(10)]))
    settings = ReadSettings(fps=5, default_rate=10)
    notes: set[str] = set()
    assert [f.index for f in frames(path, settings, notes)] == [0, 2, 4, 6, 8]
    assert notes == {"default-rate"}
    assert known(path, settings).facts.notes == ("default-rate",)


def test_frames_are_decoded_one_at_a_time(make_dicom: MakeDicom, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a 600-frame RLE clip with 4 frames to keep, 4 are decoded, and the first comes before the others."""
    import pydicom.pixels.decoders.base as base

    path = make_dicom(np.stack([speckle(seed=i % 7) for i in range(600)]), FrameTime=2.2)
    ds = pydicom.dcmread(path)
    ds.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    ds.save_as(path)
    decoded: list[int] = []
    original = base.DecodeRunner._decode_frame
    monkeypatch.setattr(
        base.DecodeRunner, "_decode_frame", lambda self, src: (decoded.append(1), original(self, src))[1]
    )
    reading = read(known(path).scan, ReadSettings(fps=3))
    next(reading)
    assert len(decoded) == 1
    assert len(list(reading)) == 3
    assert len(decoded) == 4


def test_header_words_and_regions_reach_the_cleaner_but_not_the_frame_as_text(make_dicom: MakeDicom) -> None:
    region = pydicom.Dataset()
    region.RegionSpatialFormat, region.RegionDataType = 1, 2
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 4, 6
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 40, 30
    (frame,) = frames(make_dicom(colour_clip(1), SequenceOfUltrasoundRegions=[region]))
    assert {"Doe", "Jane", "P-4711", "31.01.2024", "01/31/2024"} <= set(frame.words)
    assert (frame.regions[0].x0, frame.regions[0].x1, frame.regions[0].kind) == (4, 41, "color")
    assert "Jane" not in repr(frame)


def test_one_patient_is_one_group_and_ids_say_nothing(make_dicom: MakeDicom) -> None:
    first = known(make_dicom(colour_clip(1), "a"))
    second = known(make_dicom(colour_clip(2), "b", FrameTime=40.0))
    assert first.scan.group == second.scan.group
    assert first.scan.trail.id != second.scan.trail.id
    other = identify(Candidate.of(first.scan.path), b"x" * 32, ALL)
    assert isinstance(other, Identified)
    assert other.scan.trail.id != first.scan.trail.id  # a name under another secret is another name


def test_a_bomb_is_refused_before_decoding(make_dicom: MakeDicom) -> None:
    found = identify(Candidate.of(make_dicom(colour_clip(1), Rows=60000, Columns=60000)), SECRET, ALL)
    assert isinstance(found, Quarantined)
    assert found.reason == "too-large"


def test_of_a_truncated_clip_the_whole_frames_stay_and_the_rest_is_counted(make_dicom: MakeDicom) -> None:
    path = make_dicom(colour_clip(4), FrameTime=40.0)
    whole = [frame.pixels for frame in read(known(path).scan, ALL)]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 20_000])
    failed: dict[int, str] = {}
    got = [frame.pixels for frame in read(known(path).scan, ALL, None, failed)]
    assert 0 < len(got) < 4 and np.array_equal(got, whole[: len(got)])
    assert failed == dict.fromkeys(range(len(got), 4), "truncated")


def test_a_dataset_without_preamble_is_read(make_dicom: MakeDicom) -> None:
    clip = colour_clip(1)
    path = make_dicom(clip)
    path.write_bytes(path.read_bytes()[132:])
    assert np.array_equal(frames(path)[0].pixels, clip[0])


@pytest.mark.parametrize("fragments", [1, 3])
def test_an_mpeg_stream_in_dicom_is_read_by_time(make_dicom: MakeDicom, tmp_path: Path, fragments: int) -> None:
    import cv2

    film = tmp_path / "film.mpg"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"PIM1"), 25, (128, 96))
    assert writer.isOpened()
    for i in range(50):
        writer.write(np.repeat(speckle(96, 128, seed=i // 10)[..., None], 3, 2))
    writer.release()
    path = make_dicom(np.zeros((50, 96, 128, 3), np.uint8), FrameTime=40.0)
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    ds.PixelData = encapsulate([film.read_bytes()], fragments_per_frame=fragments, has_bot=False)
    ds.save_as(path)
    got = frames(path, ReadSettings(fps=3))
    assert len(got) == 6
    assert [f.time for f in got] == pytest.approx([0.0, 0.36, 0.68, 1.0, 1.36, 1.68], abs=0.05)
    assert np.corrcoef(got[-1].pixels[..., 0].ravel(), speckle(96, 128, seed=4).ravel())[0, 1] > 0.95
    ds.NumberOfFrames = 75  # of which the stream lacks the last 25
    ds.save_as(path)
    failed: dict[int, str] = {}
    settings = ReadSettings(fps=3)
    assert len(list(read(known(path, settings).scan, settings, None, failed))) == 6
    assert failed == dict.fromkeys(failed, "missing-frame") and len(failed) == 3


def test_convert_color_space_is_the_reference_for_ybr() -> None:
    """Guards the claim above: pydicom's own conversion is what the reader applies."""
    from usfmae.core.read.colour import Converter

    ds = pydicom.Dataset()
    ds.PhotometricInterpretation = "YBR_FULL"
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(Converter(ds, set())(array), convert_color_space(array, "YBR_FULL", "RGB"))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_syntax_has_a_decoder_installed(syntax: str) -> None:
    """Those in use are decoded in test_syntaxes.py; JPEG's 12 bits and rare processes have a decoder at least."""
    assert pydicom.pixels.get_decoder(syntax).is_available
