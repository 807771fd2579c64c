"""DICOM headers that say other than their pixels: the right picture, or none."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space

from usfmae.core.config import ReadSettings
from usfmae.core.read import Unreadable, read
from usfmae.core.types import Scan, Trail

from .conftest import speckle

MakeDicom = Callable[..., Path]
CLIP = np.stack([speckle(seed=i) for i in range(4)])  # (N, H, W)
COLOUR = np.stack([speckle(seed=i) for i in range(3)], 2)  # (H, W, 3) RGB
DEEP = CLIP.astype(np.uint16) * 16  # 12 bits
WIDE = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 2048, "WindowWidth": 4096}


def pictures(path: Path) -> np.ndarray:
    """(N, H, W, 3) of all frames; Unreadable where one is kept back."""
    failed: dict[int, str] = {}
    frames = [frame.pixels for frame in read(Scan(path, "dicom", Trail("x")), ReadSettings(fps=1000), None, failed)]
    assert not failed
    return np.stack(frames)


def distance(path: Path, truth: np.ndarray) -> float:
    """The largest mean difference of a frame from `truth`, (N, H, W) or (N, H, W, 3)."""
    found = pictures(path).astype(int)
    truth = truth if truth.ndim == 4 else np.repeat(truth[..., None], 3, 3)
    assert found.shape == truth.shape
    return float(np.abs(found - truth).mean((1, 2, 3)).max())


def rewritten(path: Path, pixels: bytes, syntax: str = "", **elements: object) -> Path:
    ds = pydicom.dcmread(path)
    ds.PixelData = pixels
    for name, value in elements.items():
        delattr(ds, name) if value is None else setattr(ds, name, value)
    if syntax:
        ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
    ds.save_as(path)
    return path


def code_stream(picture: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def test_samples_in_the_upper_bits_of_their_words_are_taken_from_there(make_dicom: MakeDicom) -> None:
    assert distance(make_dicom(DEEP << 4, **{**WIDE, "HighBit": 15}), CLIP) < 1
    low = (DEEP.astype(np.int16) - 2048) << 2
    signed = {**WIDE, "HighBit": 13, "PixelRepresentation": 1, "WindowCenter": 0}
    assert distance(make_dicom(low.view(np.uint16) & 0x3FFF, **signed), CLIP) < 1


def test_a_slope_below_zero_turns_gray_around(make_dicom: MakeDicom) -> None:
    rescaled = make_dicom(4095 - DEEP, **WIDE, RescaleSlope=-1, RescaleIntercept=4095)
    assert distance(rescaled, CLIP) < 1.5


def test_signed_bytes_have_one_scale_for_the_whole_clip(make_dicom: MakeDicom) -> None:
    clip = np.stack([CLIP[0] // 4, CLIP[0]])  # a dark frame stays dark
    signed = make_dicom((clip.astype(np.int16) - 128).astype(np.int8).view(np.uint8), PixelRepresentation=1)
    assert distance(signed, (clip - clip.min()) * (255 / np.ptp(clip))) < 0.6


def test_an_absent_planar_configuration_stands_for_samples_side_by_side(make_dicom: MakeDicom) -> None:
    path = make_dicom(COLOUR[None])
    assert distance(rewritten(path, COLOUR.tobytes(), PlanarConfiguration=None), COLOUR[None]) == 0


def sub_sampled() -> tuple[np.ndarray, np.ndarray, bytes]:
    """A clip of four frames: YCbCr of each pixel, RGB, and the bytes of it with half the chroma (PS3.3 C.7.6.3.1.2)."""
    ybr = np.stack([convert_color_space(np.roll(COLOUR, k, 2), "RGB", "YBR_FULL") for k in range(4)])
    ybr[:, :, 1::2, 1:] = ybr[:, :, ::2, 1:]
    half = np.stack([ybr[:, :, ::2, 0], ybr[:, :, 1::2, 0], ybr[:, :, ::2, 1], ybr[:, :, ::2, 2]], -1)
    return ybr, convert_color_space(ybr, "YBR_FULL", "RGB"), half.tobytes()


@pytest.mark.parametrize("stated", [None, 1, 4])
def test_sub_sampled_cines_are_told_by_their_bytes_whatever_count_is_stated(
    make_dicom: MakeDicom, stated: int | None
) -> None:
    ybr, rgb, half = sub_sampled()
    path = make_dicom(ybr, PhotometricInterpretation="YBR_FULL_422")
    assert distance(rewritten(path, half, NumberOfFrames=stated), rgb) == 0


def test_a_byte_count_that_fits_whole_and_half_chroma_or_neither_is_kept_back(make_dicom: MakeDicom) -> None:
    ybr, rgb, _ = sub_sampled()
    path = make_dicom(ybr, PhotometricInterpretation="YBR_FULL_422")
    assert distance(path, rgb) == 0  # the stated count decides
    for pixels, stated in ((ybr.tobytes(), None), (ybr.tobytes()[:-1000], 4)):
        with pytest.raises(Unreadable) as refused:
            pictures(rewritten(path, pixels, NumberOfFrames=stated))
        assert refused.value.reason == "unsupported-pixels"


@pytest.mark.parametrize(
    ("kind", "syntax", "options"),
    [("JPEG", uid.JPEGBaseline8Bit, {"quality": 95}), ("JPEG2000", uid.JPEG2000Lossless, {"no_jp2": True, "mct": 1})],
)
def test_how_many_samples_a_pixel_has_is_said_by_its_code_stream(
    make_dicom: MakeDicom, kind: str, syntax: str, options: dict[str, object]
) -> None:
    for labelled, coded in ((CLIP[0], COLOUR), (COLOUR, CLIP[0])):
        stream = code_stream(coded, kind, **options)
        truth = np.asarray(Image.open(io.BytesIO(stream)))[None]
        assert distance(rewritten(make_dicom(labelled[None]), encapsulate([stream]), syntax), truth) < 0.01


@pytest.mark.parametrize("label", ["YBR_FULL", "YBR_FULL_422"])
def test_jpeg_2000_that_transformed_its_components_holds_rgb_whatever_its_label(
    make_dicom: MakeDicom, label: str
) -> None:
    for mct, truth in ((1, COLOUR), (0, convert_color_space(COLOUR, "YBR_FULL", "RGB"))):
        stream = code_stream(COLOUR, "JPEG2000", no_jp2=True, mct=mct)
        path = make_dicom(COLOUR[None], PhotometricInterpretation=label)
        assert distance(rewritten(path, encapsulate([stream]), uid.JPEG2000Lossless), truth[None]) == 0


def test_a_jpeg_that_is_labelled_jpeg_2000_is_not_converted_twice(make_dicom: MakeDicom) -> None:
    stream = code_stream(COLOUR, "JPEG", quality=95)
    path = rewritten(make_dicom(COLOUR[None]), encapsulate([stream]), uid.JPEG2000Lossless)
    with pytest.raises(Unreadable) as refused:
        pictures(path)
    assert refused.value.reason == "wrong-syntax"


@pytest.mark.parametrize("space", ["HSV", "CMYK", "ARGB", "YBR_PARTIAL_420"])
def test_colour_spaces_that_are_not_read_are_named(make_dicom: MakeDicom, space: str) -> None:
    with pytest.raises(Unreadable) as refused:
        pictures(make_dicom(np.stack([COLOUR] * 2), PhotometricInterpretation=space))
    assert refused.value.reason == "unsupported-pixels"


def test_a_code_stream_deeper_than_its_label_is_kept_back(make_dicom: MakeDicom) -> None:
    stream = code_stream(DEEP[0], "JPEG2000", no_jp2=True)
    with pytest.raises(Unreadable) as refused:
        pictures(rewritten(make_dicom(CLIP[:1]), encapsulate([stream]), uid.JPEG2000Lossless))
    assert refused.value.reason == "unsupported-pixels"


def test_a_palette_shorter_than_it_states_is_kept_back(make_dicom: MakeDicom) -> None:
    tables = {
        f"{c}PaletteColorLookupTableData": np.arange(100, dtype="<u2").tobytes() for c in ("Red", "Green", "Blue")
    }
    described = {f"{c}PaletteColorLookupTableDescriptor": [256, 0, 16] for c in ("Red", "Green", "Blue")}
    with pytest.raises(Unreadable) as refused:
        pictures(make_dicom(CLIP, PhotometricInterpretation="PALETTE COLOR", **tables, **described))
    assert refused.value.reason == "bad-palette"
