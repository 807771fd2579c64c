"""What is no ultrasound of tissue is kept back, neither erased nor filled; what only looks unusual is not."""

from __future__ import annotations

import cv2
import numpy as np

from usfmae.core.clean import clean, clean_clip
from usfmae.core.clean.foreign import coloured_block, face_probability
from usfmae.core.config import CleanSettings
from usfmae.core.types import CleanImage, Frame, Pixels, Quarantined

SETTINGS = CleanSettings()


def screen(seed: int = 0) -> Pixels:
    rng = np.random.default_rng(seed)
    gray = cv2.GaussianBlur(rng.rayleigh(60, (360, 440)), (0, 0), 1.6)
    pixels = np.zeros((480, 640, 3), np.uint8)
    pixels[60:420, 100:540] = np.clip(gray, 4, 255).astype(np.uint8)[:, :, None]
    return pixels


def drawn_face(size: int = 160) -> Pixels:
    """A head with hair, eyes, brows, nose and mouth, softly shaded."""
    canvas = np.full((size, size, 3), 30, np.uint8)
    c, s = size // 2, size / 160
    ellipse = lambda x, y, a, b, colour: cv2.ellipse(  # noqa: E731
        canvas, (int(c + x * s), int(c + y * s)), (int(a * s), int(b * s)), 0, 0, 360, colour, -1, cv2.LINE_AA
    )
    ellipse(0, -12, 58, 70, (60, 40, 25))
    ellipse(0, 5, 46, 60, (225, 180, 150))
    for side in (-1, 1):
        ellipse(19 * side, -8, 9, 5, (250, 250, 250))
        ellipse(19 * side, -8, 4, 5, (50, 35, 25))
        ellipse(19 * side, -20, 12, 3, (70, 45, 30))
        ellipse(5 * side, 20, 3, 2, (150, 100, 80))
    ellipse(0, 10, 6, 13, (235, 190, 160))
    ellipse(0, 38, 18, 6, (180, 70, 70))
    return cv2.GaussianBlur(canvas, (0, 0), 1.5).astype(np.uint8)


def test_a_face_in_the_scan_is_kept_back() -> None:
    pixels = screen()
    pixels[150:270, 240:360] = drawn_face(120)
    cv2.putText(pixels, "GARCIA JOSE", (200, 350), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2, cv2.LINE_AA)
    assert face_probability(screen()) < 0.2
    result = clean(pixels, SETTINGS)
    assert isinstance(result, Quarantined)
    assert result.reason == "face-or-photo"
    assert result.image is not None  # a person may release it, without the name
    assert result.image.mask[338:350, 205:330].mean() > 0.9
    assert np.array_equal(result.image.pixels[150:270, 240:360], pixels[150:270, 240:360])


def test_an_elastogram_is_neither_erased_nor_kept() -> None:
    pixels = screen()
    hue = cv2.GaussianBlur(np.random.default_rng(1).random((120, 160)).astype(np.float32), (0, 0), 12)
    hue = (120 * (hue - hue.min()) / np.ptp(hue)).astype(np.uint8)
    colours = cv2.cvtColor(np.dstack([hue, np.full_like(hue, 220), np.full_like(hue, 220)]), cv2.COLOR_HSV2RGB)
    pixels[160:280, 240:400] = pixels[160:280, 240:400] // 2 + colours // 2
    assert coloured_block(pixels, pixels.max(2) > 0)
    result = clean(pixels, SETTINGS)
    assert isinstance(result, Quarantined)
    assert result.reason == "not-speckle"


def test_a_picture_that_its_display_tints_keeps_its_tissue_and_its_tint() -> None:
    pixels = screen()
    tinted = np.clip(pixels * np.array([0.75, 0.9, 1.2]), 0, 255).astype(np.uint8)
    cv2.putText(tinted, "GARCIA JOSE", (200, 250), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2, cv2.LINE_AA)
    result = clean(tinted, SETTINGS)
    assert isinstance(result, CleanImage)
    assert result.mask[238:250, 205:330].mean() > 0.9
    assert result.mask[270:400, 120:520].mean() < 0.01
    assert np.array_equal(result.pixels[300:400, 120:520], tinted[300:400, 120:520])


def test_a_face_in_a_picture_that_was_turned_is_kept_back_too() -> None:
    pixels = screen()
    pixels[150:270, 240:360] = drawn_face(120)
    for quarter in (1, 2):
        result = clean(np.ascontiguousarray(np.rot90(pixels, quarter)), SETTINGS)
        assert isinstance(result, Quarantined)
        assert result.reason == "face-or-photo"


def test_a_face_in_one_frame_of_a_clip_is_kept_back() -> None:
    frames = [screen(number) for number in range(9)]
    frames[2][150:270, 240:360] = drawn_face(120)  # neither in the first nor in the middle nor in the last
    clip = (Frame(pixels, index=number, time=number / 3) for number, pixels in enumerate(frames))
    results = list(clean_clip(clip, SETTINGS))
    assert isinstance(results[2], Quarantined)
    assert results[2].reason == "face-or-photo"
    assert sum(isinstance(result, CleanImage) for result in results) == 8


def test_a_face_that_lies_on_its_side_in_a_clip_is_kept_back() -> None:
    frames = [screen(number) for number in range(9)]
    for pixels in frames:
        pixels[150:270, 240:360] = drawn_face(120)
    turned = (np.ascontiguousarray(np.rot90(pixels)) for pixels in frames)
    clip = (Frame(pixels, index=number, time=number / 3) for number, pixels in enumerate(turned))
    assert {getattr(result, "reason", "") for result in clean_clip(clip, SETTINGS)} == {"face-or-photo"}
