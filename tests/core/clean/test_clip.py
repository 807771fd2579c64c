"""Clips: the overlay is found once where it stands still, and nothing that comes and goes is missed."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from usfmae.core.clean import clean, clean_clip
from usfmae.core.clean.clip import alone, show_text, tracks, windows
from usfmae.core.clean.inpaint import planes_of
from usfmae.core.clean.ocr import recognise
from usfmae.core.config import CleanSettings
from usfmae.core.phantom import Tissue, simulate
from usfmae.core.types import CleanImage, Frame, Pixels

SETTINGS = CleanSettings()
NAME = (slice(176, 212), slice(92, 262))


def moving(count: int, named: range) -> list[Pixels]:
    """Speckle that changes from frame to frame, with a name over it in some of them."""
    rng = np.random.default_rng(0)
    frames = []
    for index in range(count):
        gray = np.clip(cv2.GaussianBlur(rng.rayleigh(60, (300, 360)), (0, 0), 1.6), 0, 255).astype(np.uint8)
        frame = np.repeat(gray[:, :, None], 3, axis=2)
        if index in named:
            cv2.putText(
                frame, "GARCIA JOSE", (100, 200), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2, cv2.LINE_AA
            )
        frames.append(frame)
    return frames


def timed(frames: list[Pixels]) -> Iterator[Frame]:
    return (Frame(pixels, index=i, time=i / 3) for i, pixels in enumerate(frames))


def test_a_static_name_goes_from_every_frame_in_one_look() -> None:
    images, _ = simulate(Tissue(1), frames=24)
    frames = [np.repeat(image[:, :, None], 3, axis=2) for image in images[::4]]
    for frame in frames:
        cv2.putText(frame, "GARCIA JOSE", (200, 240), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2, cv2.LINE_AA)
    results = list(clean_clip(timed(frames), SETTINGS))
    assert [r.notes["together"] for r in results if isinstance(r, CleanImage)] == [6] * 6
    for frame, result in zip(frames, results, strict=True):
        assert isinstance(result, CleanImage)
        name = (slice(216, 252), slice(192, 362))
        assert "GARC" in recognise(frame[name])[0] and "GARC" not in recognise(result.pixels[name])[0]


def test_the_common_work_of_a_clip_gives_signs_of_life_before_its_first_frame() -> None:
    beats: list[int] = []
    results = clean_clip(timed(moving(6, range(0))), SETTINGS, lambda: beats.append(0))
    next(results)
    assert len(beats) >= 4


def test_a_name_in_the_middle_of_a_clip_only_is_found() -> None:
    frames = moving(5, range(1, 2))
    results = list(clean_clip(timed(frames), SETTINGS))
    assert "GARC" in recognise(frames[1][NAME])[0]
    for result in results:
        assert not isinstance(result, CleanImage) or "GARC" not in recognise(result.pixels[NAME])[0]


def test_a_name_that_shows_for_a_moment_sends_only_the_frames_around_it_to_the_stills() -> None:
    results = list(clean_clip(timed(moving(12, range(7, 8))), SETTINGS))
    shared = [isinstance(r, CleanImage) and "together" in r.notes for r in results]
    assert shared == [True] * 6 + [False] * 3 + [True] * 3
    assert isinstance(results[7], CleanImage) and "GARC" not in recognise(results[7].pixels[NAME])[0]


def test_where_many_frames_are_doubted_all_are_cleaned_as_stills() -> None:
    assert alone([False] * 9 + [True]) == [False] * 8 + [True] * 2
    assert alone([False] * 8 + [True] * 2) is None


def test_stills_say_nothing_of_each_other() -> None:
    frames = [Frame(pixels) for pixels in moving(3, range(1, 2))]
    for frame, result in zip(frames, clean_clip(frames, SETTINGS), strict=True):
        alone = clean(frame, SETTINGS)
        assert isinstance(result, CleanImage) and isinstance(alone, CleanImage)
        assert np.array_equal(result.pixels, alone.pixels)


def test_a_long_clip_is_never_held_whole() -> None:
    drawn = 0

    def frames() -> Iterator[Frame]:
        nonlocal drawn
        for index in range(100):
            drawn += 1
            yield Frame(np.zeros((8, 8, 3), np.uint8), index=index, time=index / 3)

    first = next(windows(frames(), 32))
    assert len(first) == 32
    assert drawn <= 33


def test_a_change_of_size_starts_a_new_run() -> None:
    sizes = [8, 8, 16, 16, 16]
    frames = [Frame(np.zeros((s, s, 3), np.uint8), index=i, time=i / 3) for i, s in enumerate(sizes)]
    assert [len(run) for run in windows(frames, 32)] == [2, 3]


def test_a_name_that_moves_is_found_in_every_frame() -> None:
    images, _ = simulate(Tissue(9), frames=40)
    frames = [np.repeat(image[:, :, None], 3, axis=2) for image in images[::4]]
    places = [(100 + 4 * i, 240 + 2 * i) for i in range(len(frames))]
    for frame, place in zip(frames, places, strict=True):
        cv2.putText(frame, "GARCIA JOSE", place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 1, cv2.LINE_AA)
    for frame, (x, y), result in zip(frames, places, clean_clip(timed(frames), SETTINGS), strict=True):
        name = np.s_[y - 20 : y + 10, x - 6 : x + 150]
        assert "GARC" in recognise(frame[name])[0]
        assert not isinstance(result, CleanImage) or "GARC" not in recognise(result.pixels[name])[0]


def written(pixels: Pixels, place: tuple[int, int], level: int) -> Pixels:
    """A small name at a place, brighter or darker than what lies below by `level`."""
    ink = np.zeros(pixels.shape[:2], np.uint8)
    cv2.putText(ink, "GARCIA JOSE", place, cv2.FONT_HERSHEY_SIMPLEX, 0.35, 255, 1, cv2.LINE_AA)
    return np.clip(pixels + ink[:, :, None] / 255 * level, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("level", [24, 36, -60])
def test_faint_letters_of_a_few_pixels_are_seen_in_a_large_frame_of_a_clip(level: int) -> None:
    images, _ = simulate(Tissue(9), frames=1)
    bare = np.repeat(images[0][:, :, None], 3, axis=2)
    assert min(bare.shape[:2]) > 400
    nothing = np.zeros(bare.shape[:2], bool)
    assert show_text([planes_of(pixels, nothing) for pixels in (bare, written(bare, (200, 260), level))], nothing) == [
        False,
        True,
    ]


def test_the_track_of_a_dark_name_is_no_static_overlay_and_a_dark_name_that_stands_still_is() -> None:
    images, _ = simulate(Tissue(9), frames=40)
    bare = [np.repeat(image[:, :, None], 3, axis=2) for image in images[::4]]
    for step in (3, 0):
        frames = [written(pixels, (200 + step * n, 260 + step * n), -200) for n, pixels in enumerate(bare)]
        darker = np.min(bare, axis=0).max(2) > np.min(frames, axis=0).max(2) + 14
        drawn = cv2.dilate(darker.astype(np.uint8), np.ones((7, 7))) > 0
        assert tracks(drawn, np.min(frames, axis=0), frames).any() == (step > 0)
