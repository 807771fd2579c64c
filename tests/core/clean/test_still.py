"""One frame through the safe profile: what a hospital relies on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from usfmae.core.clean import clean, cut_to_scan
from usfmae.core.clean.ocr import recognise, resembles
from usfmae.core.config import CleanSettings
from usfmae.core.errors import SourceError
from usfmae.core.types import CleanImage, Frame, Pixels, Quarantined, Region

SETTINGS = CleanSettings()


def speckle(height: int = 300, width: int = 400, seed: int = 0) -> Pixels:
    """Rayleigh speckle of a linear probe, gray (H, W, 3)."""
    rng = np.random.default_rng(seed)
    field = cv2.GaussianBlur(rng.normal(size=(height, width, 2)), (0, 0), 2.0)
    envelope = np.hypot(field[:, :, 0], field[:, :, 1])
    gray = np.clip(envelope / envelope.mean() * 60, 0, 255).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def screen(seed: int = 0) -> tuple[Pixels, tuple[slice, slice]]:
    """Speckle on a black screen, and where it lies."""
    pixels = np.zeros((420, 560, 3), np.uint8)
    place = (slice(80, 380), slice(80, 480))
    pixels[place] = speckle(seed=seed)
    return pixels, place


def write(pixels: Pixels, text: str, x: int, y: int, colour: tuple[int, int, int] = (255, 255, 255)) -> None:
    cv2.putText(pixels, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.7, colour, 2, cv2.LINE_AA)


def cleaned(pixels: Pixels, **frame: object) -> CleanImage:
    result = clean(Frame(pixels, **frame), SETTINGS)  # type: ignore[arg-type]
    assert isinstance(result, CleanImage)
    return result


@pytest.mark.parametrize("text", ["GARCIA JOSE", "G A R C I A"])
def test_print_of_low_contrast_and_letters_far_apart_go(text: str) -> None:
    pixels, _ = screen()
    layer = np.zeros(pixels.shape[:2], np.uint8)
    cv2.putText(layer, text.replace(" ", "  "), (120, 220), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 1, cv2.LINE_AA)
    level = float(pixels[200:225, 120:330].mean()) + 45
    pixels = np.where(layer[:, :, None] > 0, level, pixels).astype(np.uint8)
    result = cleaned(pixels)
    assert result.mask[layer > 127].mean() > 0.9
    assert result.mask[270:370, 90:470].mean() < 0.01


def test_small_crosses_and_the_figures_beside_them_go() -> None:
    pixels, _ = screen()
    layer = np.zeros(pixels.shape[:2], np.uint8)
    for number, (x, y) in enumerate(((150, 150), (220, 180), (330, 240), (400, 300)), 1):
        cv2.drawMarker(layer, (x, y), 255, (cv2.MARKER_CROSS, cv2.MARKER_TILTED_CROSS)[number % 2], 7, 1)
        cv2.putText(layer, str(number), (x + 7, y - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.35, 255, 1, cv2.LINE_AA)
    share = 0.8 / 255 * cv2.GaussianBlur(layer, (0, 0), 0.5)[:, :, None]
    result = cleaned(np.round(pixels * (1 - share) + 255 * share).astype(np.uint8))
    assert result.mask[layer > 127].mean() > 0.8
    assert result.mask[85:130, 90:470].mean() < 0.03


def test_a_name_out_of_focus_does_not_stay() -> None:
    pixels, _ = screen()
    layer = np.zeros(pixels.shape[:2], np.uint8)
    cv2.putText(layer, "GARCIA JOSE", (110, 240), cv2.FONT_HERSHEY_SIMPLEX, 1.3, 255, 3, cv2.LINE_AA)
    share = 0.8 / 255 * cv2.GaussianBlur(layer, (0, 0), 2.0)[:, :, None]
    pixels = np.round(pixels * (1 - share) + 255 * share).astype(np.uint8)
    result = clean(pixels, SETTINGS)
    assert isinstance(result, Quarantined) or result.mask[layer > 127].mean() > 0.9


@pytest.mark.parametrize("colour", [(255, 90, 80), (90, 120, 255)])
def test_large_letters_in_a_colour_of_flow_do_not_stay_as_flow(colour: tuple[int, int, int]) -> None:
    pixels, _ = screen()
    layer = np.zeros(pixels.shape[:2], np.uint8)
    cv2.putText(layer, "DOB 12", (95, 260), cv2.FONT_HERSHEY_SIMPLEX, 3, 255, 11, cv2.LINE_AA)
    share = 0.5 / 255 * layer[:, :, None]
    pixels = np.round(pixels * (1 - share) + np.array(colour) * share).astype(np.uint8)
    result = clean(pixels, SETTINGS)
    assert isinstance(result, Quarantined) or result.mask[layer > 127].mean() > 0.9


def test_outside_is_black_and_a_name_over_tissue_cannot_be_read() -> None:
    pixels, (rows, columns) = screen()
    write(pixels, "MILLER ANNA 1961", 120, 40)
    write(pixels, "GARCIA JOSE", 180, 200)
    assert "GARCIA" in recognise(pixels[176:212, 172:330])[0]
    result = cleaned(pixels)
    assert not result.pixels[:70].any()
    assert "GARC" not in recognise(result.pixels[176:212, 172:330])[0]
    assert result.pixels[rows, columns].mean() > 40  # tissue is still there


def test_clean_tissue_is_left_alone() -> None:
    pixels, (rows, columns) = screen(seed=1)
    assert cleaned(pixels).mask[rows, columns].mean() < 0.02


def test_the_mask_is_exactly_what_changed() -> None:
    pixels, _ = screen()
    write(pixels, "LEFT LOBE", 180, 200, (255, 255, 0))
    before = pixels.copy()
    result = cleaned(pixels)
    assert np.array_equal(result.mask, (result.pixels != before).any(2))
    assert np.array_equal(pixels, before)  # the frame handed in is not written to


def test_same_frame_same_bytes() -> None:
    pixels, _ = screen()
    write(pixels, "RT KIDNEY", 180, 200)
    assert np.array_equal(cleaned(pixels).pixels, cleaned(pixels).pixels)


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 5), (5, 5, 4)])
def test_other_shapes_are_refused_with_a_reason(shape: tuple[int, ...]) -> None:
    with pytest.raises(SourceError, match="RGB"):
        clean(np.zeros(shape, np.uint8), SETTINGS)


def test_a_frame_without_tissue_is_kept_back() -> None:
    pixels = np.zeros((300, 400, 3), np.uint8)
    write(pixels, "MILLER ANNA", 50, 150)
    result = clean(pixels, SETTINGS)
    assert isinstance(result, Quarantined)
    assert result.reason == "region-small"


def test_header_regions_are_used_where_they_fit_and_doubted_where_they_do_not() -> None:
    pixels, (rows, columns) = screen()
    upper = Region(columns.start, rows.start, columns.stop, rows.start + 280)
    assert not cleaned(pixels, regions=(upper,)).pixels[rows.start + 280 :].any()
    elsewhere = clean(Frame(pixels, regions=(Region(0, 0, 100, 100),)), SETTINGS)
    assert isinstance(elsewhere, Quarantined)
    assert elsewhere.reason == "region-disagrees"
    stale = Region(0, 0, 800, 600)  # exceeds the stored pixels: not believed
    assert cleaned(pixels, regions=(stale,)).pixels[rows, columns].mean() > 40


def test_a_doubtful_reading_counts_where_the_header_states_the_word() -> None:
    assert resembles("M1LLER ANN", ("Miller Anna",))
    assert not resembles("M1LLER ANN", ("Okonkwo",))
    assert not resembles("M1", ("Miller Anna",))


def test_nothing_is_sent_and_nothing_is_written_home(tmp_path: Path) -> None:
    """OpenVINO's usage statistics: neither the module that sends them nor the client id they write."""
    program = (
        "import sys, numpy as np; from usfmae.core.clean.ocr import text_probability;"
        "text_probability(np.zeros((64, 64, 3), np.uint8));"
        "sys.exit(any(m.startswith('openvino_telemetry') and sys.modules[m] for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "HOME": str(tmp_path)}, check=False)
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_an_image_is_cut_to_the_scan_and_the_paper_profile_keeps_the_frame() -> None:
    pixels, _ = screen()
    write(pixels, "MILLER ANNA 1961", 120, 40)
    result = cleaned(pixels)
    cut = cut_to_scan(result, SETTINGS)
    assert abs(cut.pixels.shape[0] - 300) <= 12 and abs(cut.pixels.shape[1] - 400) <= 12
    assert cut.mask.shape == cut.pixels.shape[:2]
    assert np.array_equal(cut_to_scan(result, CleanSettings(crop="frame")).pixels, result.pixels)
    assert np.array_equal(cut_to_scan(result, CleanSettings(profile="paper")).pixels, result.pixels)
