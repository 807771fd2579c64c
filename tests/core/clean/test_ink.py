"""Ink apart from tissue and flow: each kind of overlay is found, and what only looks like it is left."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from usfmae.core.clean.colour import split
from usfmae.core.clean.graphics import crosses, graphics, ridge, rulers, shortest_line
from usfmae.core.clean.inpaint import fill, inpainted, picture_of, planes_of
from usfmae.core.types import Pixels


def tissue(seed: int = 0, size: int = 260) -> Pixels:
    rng = np.random.default_rng(seed)
    gray = cv2.GaussianBlur(rng.rayleigh(60, (size, size)), (0, 0), 1.6)
    return np.repeat(np.clip(gray, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def ink_of(kind: str, colour: tuple[int, int, int]) -> tuple[Pixels, np.ndarray]:
    """Tissue with one overlay, and the pixels it covers."""
    layer = np.zeros((260, 260), np.uint8)
    if kind == "plus":
        cv2.line(layer, (92, 100), (108, 100), 255, 1)
        cv2.line(layer, (100, 92), (100, 108), 255, 1)
    elif kind == "cross":
        cv2.line(layer, (94, 94), (106, 106), 255, 1)
        cv2.line(layer, (94, 106), (106, 94), 255, 1)
    elif kind == "dots":
        for step in range(16):
            layer[60 + 4 * step : 62 + 4 * step, 50 + 6 * step : 52 + 6 * step] = 255
    elif kind == "box":
        cv2.rectangle(layer, (60, 60), (180, 160), 255, 1)
    else:
        cv2.ellipse(layer, (130, 130), (40, 28), 0, 0, 360, 255, 1)
    pixels = tissue()
    pixels[layer > 0] = colour
    return pixels, layer > 0


@pytest.mark.parametrize("kind", ["plus", "cross", "dots", "box"])
def test_white_ink_is_found(kind: str) -> None:
    pixels, ink = ink_of(kind, (255, 255, 255))
    assert graphics(pixels)[0][ink].mean() > 0.95


@pytest.mark.parametrize("colour", [(255, 255, 0), (0, 255, 0), (0, 220, 255), (255, 60, 60)])
def test_coloured_outline_is_ink_even_after_jpeg(colour: tuple[int, int, int]) -> None:
    pixels, ink = ink_of("outline", colour)
    coded = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    pixels = np.ascontiguousarray(cv2.imdecode(coded, cv2.IMREAD_COLOR)[:, :, ::-1])
    found, flow = split(pixels)
    assert found[ink].mean() > 0.9
    assert not flow[ink].any()


def test_flow_of_varied_velocity_is_no_ink() -> None:
    pixels = tissue()
    yy, xx = np.mgrid[:260, :260]
    vessel = np.hypot((xx - 130) / 2, yy - 130) < 16
    speed = np.clip(255 - 12 * np.hypot((xx - 130) / 2, yy - 130), 60, 255).astype(np.uint8)
    pixels[vessel] = np.stack([speed, speed // 3, np.zeros_like(speed)], 2)[vessel]
    found, flow = split(pixels)
    assert flow[vessel].mean() > 0.98
    assert not found[vessel].any()


def test_tissue_alone_has_no_ink() -> None:
    assert np.mean([graphics(tissue(seed))[0].mean() for seed in range(4)]) < 0.003
    assert not split(tissue())[0].any()


def test_frames_inpainted_together_are_as_inpainted_alone() -> None:
    hole = np.zeros((260, 260), bool)
    hole[40:52, 30:140] = True
    frames = [tissue(seed) for seed in range(4)]
    frames[2][100:110, 100:110] = (200, 40, 40)  # one frame in colour
    together = [planes_of(frame, hole) for frame in frames]
    fill(together, hole, 3.0)
    for frame, result in zip(frames, together, strict=True):
        assert np.array_equal(picture_of(result), inpainted(frame, hole, 3.0))
        assert np.array_equal(picture_of(result)[~hole], frame[~hole])


def test_sharp_speckle_of_a_small_picture_is_no_ink() -> None:
    field = cv2.GaussianBlur(np.random.default_rng(0).rayleigh(60, (128, 128)), (0, 0), 0.7)
    pixels = np.repeat(np.clip(1.3 * field, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    assert graphics(pixels)[0].mean() < 0.05  # half of it, where every bright grain is taken for a stroke


def test_among_many_bright_grains_ink_is_told_by_its_size() -> None:
    pixels = np.full((300, 300, 3), 40, np.uint8)
    rng = np.random.default_rng(5)
    for index, (row, column) in enumerate(np.ndindex(12, 12)):
        level = 255 if index % 3 == 0 else 130  # a third of the grains is as bright as ink
        x, y = 12 + 24 * column + int(rng.integers(6)), 12 + 24 * row + int(rng.integers(6))
        pixels[y : y + 2, x : x + 8] = level
    grains = pixels.copy()
    pixels[146:150, 20:60] = 255  # an arrow's shaft
    found = graphics(pixels)[0]
    assert found[147:149, 26:54].mean() > 0.9
    assert graphics(grains)[0].mean() < 0.1 * (grains[..., 0] == 255).mean()


def test_lines_that_meet_at_a_corner_are_certain_and_a_layer_is_not() -> None:
    box, layer = tissue(), tissue()
    cv2.rectangle(box, (60, 60), (180, 160), (255, 255, 255), 1)
    cv2.line(layer, (20, 100), (240, 100), (255, 255, 255), 1)
    assert graphics(box)[1][60, 70:170].mean() > 0.9 and graphics(box)[1][70:150, 180].mean() > 0.9
    assert graphics(layer)[0][100, 40:220].mean() > 0.9 and not graphics(layer)[1].any()


def test_where_specks_are_many_a_dotted_line_must_be_longer_than_chance_makes_them() -> None:
    assert shortest_line(30, 60) == 7  # a line of dots on smooth tissue, few others near
    assert shortest_line(500, 9000) > 12  # coarse speckle: seven in a row stand everywhere
    assert shortest_line(5, 0) == 7


def test_a_bright_grain_is_no_caliper() -> None:
    gray = np.full((120, 120), 40, np.uint8)
    cv2.ellipse(gray, (40, 60), (4, 3), 20, 0, 360, 230, -1)
    gray = cv2.GaussianBlur(gray, (0, 0), 1.2)
    cv2.line(gray, (82, 60), (98, 60), 255, 1)
    cv2.line(gray, (90, 52), (90, 68), 255, 1)
    assert crosses(ridge(gray)).round().astype(int).tolist() == [[90, 60]]


def test_frames_that_a_codec_tinted_are_filled_with_gray() -> None:
    hole = np.zeros((260, 260), bool)
    hole[40:52, 30:140] = True
    tinted, vessel = tissue(0), tissue(1)
    tinted[:, :, 0] = np.minimum(255, tinted[:, :, 0].astype(int) + 4)
    vessel[36:60, 20:150] = (200, 40, 40)
    for frame, gray in ((tinted, True), (vessel, False)):
        planes = planes_of(frame, hole)
        assert len(planes) == 3
        fill([planes], hole, 2.0, faint=18)
        red, green, _ = planes
        assert np.array_equal(picture_of(planes)[~hole], frame[~hole])
        assert np.array_equal(red[hole], green[hole]) == gray


def test_a_yellow_caliper_of_a_few_pixels_is_ink() -> None:
    pixels = tissue()
    layer = np.zeros(pixels.shape[:2], np.uint8)
    cv2.line(layer, (74, 80), (86, 80), 255, 3)
    cv2.line(layer, (80, 74), (80, 86), 255, 3)
    pixels[layer > 0] = (235, 230, 30)
    coded = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    found, flow = split(np.ascontiguousarray(cv2.imdecode(coded, cv2.IMREAD_COLOR)[:, :, ::-1]))
    assert found[layer > 0].mean() > 0.9 and not flow[layer > 0].any()


def test_the_ticks_of_a_ruler_are_certain_and_chance_makes_none() -> None:
    pixels = tissue()
    for row in range(20, 250, 26):
        pixels[row : row + 2, 12:18] = 240
    _, certain = graphics(pixels)
    assert certain[20:22, 12:18].all() and certain[176:178, 12:18].all()
    assert np.mean([rulers(ridge(tissue(seed)[:, :, 0])).mean() for seed in range(4)]) < 0.001


def test_a_row_of_blue_letters_is_no_flow() -> None:
    pixels = tissue()
    cv2.putText(pixels, "Schmidt Eva", (50, 140), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (60, 90, 255), 2, cv2.LINE_AA)
    coded = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    _, flow = split(np.ascontiguousarray(cv2.imdecode(coded, cv2.IMREAD_COLOR)[:, :, ::-1]))
    assert not flow.any()
