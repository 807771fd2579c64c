"""The scorer of real overlays: what counts as left, as harm, as removed; a run that was cut off goes on."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from usfmae.core.annotate import LabelledPicture, Mark, Shape, Truth
from usfmae.core.types import CleanImage, Pixels

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import labelled

CROSS, WORD = (40, 40, 51, 51), (20, 80, 70, 92)


def scan() -> Pixels:
    """Speckle (120, 160, 3) with a cross and a word of strokes drawn over it."""
    gray = np.random.default_rng(0).normal(80, 8, (120, 160)).clip(20, 140)
    gray[45, 40:51] = gray[40:51, 45] = 255
    gray[82:90, 22:68:4] = 255
    return np.repeat(gray[:, :, None], 3, 2).astype(np.uint8)


def one() -> labelled.Labelled:
    shapes = (Shape(label=Mark.CALIPER, box=CROSS), Shape(label=Mark.TEXT, box=WORD))
    picture = LabelledPicture(name="a.png", sha256="0" * 64, width=160, height=120, done=True, shapes=shapes)
    return labelled.Labelled("set", picture)


def without(pixels: Pixels, box: tuple[int, int, int, int]) -> CleanImage:
    """The picture with a box filled by the level around it."""
    x0, y0, x1, y1 = box
    cleaned = pixels.copy()
    cleaned[y0:y1, x0:x1] = 80
    return CleanImage(cleaned, (cleaned != pixels).any(2))


def test_what_stands_untouched_is_left_and_what_was_filled_is_not() -> None:
    pixels = scan()
    row = labelled.scored(one(), pixels, without(pixels, WORD))
    assert row.left == {Mark.CALIPER: 1, Mark.TEXT: 0} and row.shapes.total() == 2
    assert row.removed[Mark.CALIPER] == 0 and row.removed[Mark.TEXT] == row.ink[Mark.TEXT] > 50


def test_half_a_word_is_left() -> None:
    pixels = scan()
    assert labelled.scored(one(), pixels, without(pixels, (20, 80, 45, 92))).left[Mark.TEXT] == 1


def test_ink_is_the_strokes_and_not_the_speckle_between_them() -> None:
    pixels = scan()
    ink = labelled.ink_of(labelled.contrast(pixels), Shape(label=Mark.TEXT, box=WORD).mask(120, 160))
    assert ink.sum() == 8 * 12


def test_harm_is_tissue_changed_away_from_every_shape() -> None:
    pixels = scan()
    assert labelled.scored(one(), pixels, without(pixels, WORD)).harmed == 0
    row = labelled.scored(one(), pixels, without(pixels, (100, 10, 140, 30)))
    assert row.harmed == pytest.approx(800 / (120 * 160 - 21 * 21 - 60 * 22), rel=0.05)


def test_a_picture_that_is_kept_back_leaves_nothing() -> None:
    row = labelled.scored(one(), scan(), None, "text-left")
    figures = labelled.table([row])
    assert figures["kept_back"] == 1 and figures["reasons"] == {"text-left": 1}
    assert figures["left"]["words"] == {"shapes": 0, "left": 0, "pictures": 0}


def test_a_run_that_was_cut_off_goes_on_and_takes_no_row_of_older_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    Image.fromarray(scan()).save(tmp_path / "set" / "a.png")
    digest = hashlib.sha256((tmp_path / "set" / "a.png").read_bytes()).hexdigest()
    picture = one().picture.model_copy(update={"sha256": digest})
    labels, file = labelled.Labelled("set", picture), tmp_path / "rows.jsonl"
    (first,) = labelled.rows(tmp_path, file, "paper", [labels])
    file.write_text(file.read_text() + '{"key": "torn')

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(labelled, "row_of", never)
    assert labelled.rows(tmp_path, file, "paper", [labels]) == [first]
    changed = labelled.Labelled("set", picture.model_copy(update={"shapes": picture.shapes[:1]}))
    assert changed.key != labels.key


def test_a_picture_other_than_the_labelled_one_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Image.fromarray(scan()).save(tmp_path / "set" / "a.png")
    with pytest.raises(SystemExit, match="not the picture that was labelled"):
        one().pixels(tmp_path)


def test_the_truth_that_is_shipped_can_be_read_and_the_halves_share_no_data_set() -> None:
    assert not set(labelled.HALVES["tuning"]) & set(labelled.HALVES["scoring"])
    names = {file.stem for file in labelled.TRUTH.glob("*.json")}
    assert names <= {name for half in labelled.HALVES.values() for name in half}
    for name in names:
        truth = Truth.load(labelled.TRUTH / f"{name}.json")
        assert truth.dataset == name and all(picture.done for picture in truth.pictures)
    assert len(labelled.pictures("scoring", 5)) == min(5, len(labelled.pictures("scoring")))
