"""The yardstick: its truth is right, its scorer can tell a cleaned picture from an untouched one, and clips stand it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from usfmae.core.clean.clip import show_text
from usfmae.core.clean.inpaint import planes_of

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "yardstick"))

import generate
import score


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("yardstick")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["generate.py", str(folder), "--seed", "3", "--count", "1", "--kinds", KINDS])
        generate.main()
    return folder


KINDS = "tissue,coloured,banner,graphics,clean"


def test_ink_is_where_picture_and_reference_differ(part: Path) -> None:
    for name in KINDS.split(","):
        layers = (score.load(part / layer / f"{name}-000.png") for layer in ("pictures", "reference", "ink"))
        picture, reference, ink = layers
        differ = np.abs(picture.astype(int) - reference).max(2) > 60
        assert not (differ & (cv2.dilate(ink, np.ones((5, 5), np.uint8)).max(2) == 0)).any()
        assert differ.any() == (name != "clean")


def test_what_is_untouched_is_left_and_what_is_the_reference_is_not(part: Path) -> None:
    untouched, perfect = score.score(part, part / "pictures"), score.score(part, part / "reference")
    for kind in ("tissue", "coloured", "banner"):
        assert untouched[kind]["left"] == untouched[kind]["strings"] > 0
        assert perfect[kind].get("left", 0) == 0
    assert untouched["graphics"]["graphics_removed"] == 0 and perfect["graphics"]["graphics_removed"] > 0.9


def test_what_is_kept_back_leaks_nothing(part: Path, tmp_path: Path) -> None:
    shutil.copy(part / "pictures" / "clean-000.png", tmp_path)
    rows = score.score(part, tmp_path)
    assert rows["tissue"]["kept_back"] == 1 and rows["tissue"].get("left", 0) == 0
    assert rows["clean"].get("kept_back", 0) == 0


@pytest.mark.parametrize("number", [4, 8])
def test_a_name_that_creeps_through_a_clip_is_seen(number: int) -> None:
    rng = np.random.default_rng((202, len(generate.STILLS), number))
    frames = [picture.pixels for picture in generate.clip("moving", rng)]
    crops = [planes_of(pixels, np.zeros(pixels.shape[:2], bool)) for pixels in frames]
    assert any(show_text(crops, np.zeros(crops[0][0].shape, bool)))
