"""Of no still much tissue goes on suspicion alone: a person decides."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from usfmae.core.clean import clean
from usfmae.core.clean.graphics import graphics, shortest_line
from usfmae.core.clean.text import drawn_lines, numbers
from usfmae.core.config import CleanSettings
from usfmae.core.types import CleanImage, Pixels, Quarantined

SETTINGS = CleanSettings(most_filled=1.0)  # here suspicion decides alone


def tissue(height: int = 300, width: int = 360) -> Pixels:
    rng = np.random.default_rng(0)
    gray = np.clip(cv2.GaussianBlur(rng.rayleigh(50, (height, width)), (0, 0), 1.6), 0, 255).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def layered(colour: tuple[int, int, int]) -> Pixels:
    """A phantom whose layers are as even as ruled lines."""
    pixels = tissue()
    for row in range(30, 280, 24):
        pixels[row : row + 2, 20:340] = colour
    return pixels


def test_a_still_of_ruled_layers_is_kept_back_with_what_cleaning_made_of_it() -> None:
    result = clean(layered((230, 230, 230)), SETTINGS)
    assert isinstance(result, Quarantined)
    assert result.reason == "much-suspected"
    released = clean(layered((230, 230, 230)), CleanSettings(most_suspected=1.0, most_filled=1.0))
    assert result.image is not None and isinstance(released, CleanImage)
    assert np.array_equal(result.image.pixels, released.pixels)


def test_what_is_certain_is_not_kept_back_however_much_it_is() -> None:
    assert isinstance(clean(layered((230, 230, 0)), SETTINGS), CleanImage)


@pytest.mark.parametrize("gray", [235, 110])
def test_a_name_that_an_engine_reads_is_certain(gray: int) -> None:
    pixels = tissue()
    for row in (80, 160, 240):
        cv2.putText(pixels, "GARCIA JOSE 1961", (30, row), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (gray,) * 3, 2, cv2.LINE_AA)
    result = clean(pixels, SETTINGS)
    assert isinstance(result, CleanImage)
    assert result.mask.mean() > SETTINGS.most_suspected


def test_a_still_of_which_much_would_be_filled_is_kept_back_however_certain_that_is() -> None:
    result = clean(layered((230, 230, 0)), CleanSettings())
    assert isinstance(result, Quarantined)
    assert result.reason == "much-filled"


def test_a_measurement_is_certain() -> None:
    pixels = tissue() // 3
    for x in (64, 145):
        cv2.line(pixels, (x - 7, 200), (x + 7, 200), (240,) * 3, 1)
        cv2.line(pixels, (x, 193), (x, 207), (240,) * 3, 1)
    assert graphics(pixels)[1][200, 58:70].all()


def test_a_long_line_of_dots_is_certain() -> None:
    pixels = tissue() // 3
    for column in range(40, 330, 7):
        pixels[200:202, column : column + 2] = 240
    assert graphics(pixels)[1][200:202, 40:330].any()


def test_specks_that_stand_in_a_row_by_chance_are_not_certain() -> None:
    assert shortest_line(400, 6000, by_chance=1e-4) > shortest_line(400, 6000)
    field = cv2.GaussianBlur(np.random.default_rng(0).rayleigh(60, (128, 128)), (0, 0), 0.7)
    grains = np.repeat(np.clip(1.3 * field, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    assert graphics(grains)[1].mean() < 0.01


def test_a_streak_of_which_the_network_is_hardly_anywhere_sure_is_no_line() -> None:
    probability = np.zeros((80, 200), np.float32)
    probability[30:50, 10:190] = 0.6
    probability[35:41, 20:26] = 0.99
    assert drawn_lines(probability) == ([], [])
    probability[35:41, 20:60] = 0.99
    assert len(drawn_lines(probability)[0]) == 1


def test_a_figure_is_filled_on_less_than_a_line_and_a_spot_of_tissue_is_not() -> None:
    probability, pixels = np.zeros((80, 200), np.float32), np.full((80, 200, 3), 60, np.uint8)
    for x in (20, 80):  # a figure, and as much as suspected where nothing thin is bright
        probability[30:44, x : x + 10] = 0.75
    probability[20:60, 120:180] = 0.75
    pixels[32:42, 24:26] = pixels[22:58, 130:132] = 200
    assert [window[1].start + 4 for window, _ in numbers(probability, pixels)] == [20]
