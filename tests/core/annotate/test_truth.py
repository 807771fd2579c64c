"""Files of labels: what they hold, what they refuse, and that a crash leaves the old one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from usfmae.core.annotate import LabelledPicture, Mark, Shape, Truth
from usfmae.core.errors import SourceError


def picture(name: str = "a.png", *shapes: Shape, done: bool = True) -> LabelledPicture:
    return LabelledPicture(name=name, sha256="0" * 64, width=40, height=30, shapes=shapes, done=done)


def test_a_file_of_labels_comes_back_as_it_was_and_is_sorted(tmp_path: Path) -> None:
    box = Shape(label=Mark.DIGITS, box=(1, 2, 9, 8))
    stroke = Shape(label=Mark.CALIPER, stroke=((0, 0), (39, 29)), width=2)
    truth = Truth(dataset="set").with_picture(picture("b.png", box)).with_picture(picture("a.png", stroke, done=False))
    truth.save(tmp_path / "set.json")
    assert Truth.load(tmp_path / "set.json") == truth
    assert [p.name for p in truth.pictures] == ["a.png", "b.png"]
    assert len((tmp_path / "set.json").read_text().splitlines()) == 4  # one picture a line


def test_a_picture_is_replaced_and_never_twice_in_a_file() -> None:
    truth = Truth(dataset="set").with_picture(picture(done=False)).with_picture(picture())
    assert [p.done for p in truth.pictures] == [True]


def test_masks_hold_the_box_half_open_and_the_stroke_as_wide_as_it_is() -> None:
    box = Shape(label=Mark.TEXT, box=(1, 2, 4, 5)).mask(30, 40)
    assert box.sum() == 9 and box[2:5, 1:4].all()
    stroke = Shape(label=Mark.ARROW, stroke=((5, 5), (5, 20)), width=3).mask(30, 40)
    assert stroke[10].sum() == 3 and stroke[10, 4:7].all() and not stroke[28].any()
    dot = Shape(label=Mark.RULER, stroke=((5, 5),), width=5).mask(30, 40)
    assert dot[5].sum() == 5


def test_masks_of_one_label_are_joined() -> None:
    two = picture("a", Shape(label=Mark.BAR, box=(0, 0, 2, 2)), Shape(label=Mark.BAR, box=(10, 10, 12, 12)))
    assert two.masks()[Mark.BAR].sum() == 8 and set(two.masks()) == {Mark.BAR}


@pytest.mark.parametrize(
    "shape",
    [
        {"label": "caliper"},
        {"label": "caliper", "box": [0, 0, 5, 5], "stroke": [[1, 1]]},
        {"label": "no such label", "box": [0, 0, 5, 5]},
        {"label": "caliper", "box": [5, 0, 5, 5]},
        {"label": "caliper", "box": [0, 0, 41, 5]},
        {"label": "caliper", "stroke": [[-1, 0]]},
        {"label": "caliper", "stroke": [[40, 0]]},
        {"label": "caliper", "box": [0, 0, 5, 5], "pixels": "AAAA"},
    ],
    ids=["nothing", "both", "label", "empty", "beyond", "negative", "stroke-beyond", "other-field"],
)
def test_a_shape_that_is_none_is_refused_with_the_files_name(tmp_path: Path, shape: dict[str, object]) -> None:
    record = {"name": "a.png", "sha256": "0" * 64, "width": 40, "height": 30, "shapes": [shape]}
    file = tmp_path / "set.json"
    file.write_text(json.dumps({"format": "usfmae-truth-1", "dataset": "set", "pictures": [record]}))
    with pytest.raises(SourceError, match=r"set\.json"):
        Truth.load(file)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "usfmae-truth-2", "dataset": "x"}', "\0\xff"])
def test_a_damaged_file_is_an_error_for_people(tmp_path: Path, text: str) -> None:
    (tmp_path / "set.json").write_text(text, encoding="latin-1")
    with pytest.raises(SourceError, match=r"set\.json"):
        Truth.load(tmp_path / "set.json")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from usfmae.core.errors import ResourceError

    file = tmp_path / "set.json"
    Truth(dataset="old").save(file)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceError, match="is full"):
        Truth(dataset="new").save(file)
    monkeypatch.undo()
    assert Truth.load(file).dataset == "old" and [p.name for p in tmp_path.iterdir()] == ["set.json"]
