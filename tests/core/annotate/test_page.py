"""The labelling page by its addresses: token first, every change saved, nothing of a picture in the file."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from usfmae.core.annotate import Truth
from usfmae.core.annotate.page import LabelSet, application, labelling, native_picture
from usfmae.core.errors import SourceError, UsageError
from usfmae.core.web.access import People

BOX = {"label": "caliper", "box": [2, 3, 10, 12]}


@dataclass
class Opened:
    page: TestClient
    labels: LabelSet
    file: Path
    form_token: str

    def save(self, number: int, shapes: object, done: str = "no") -> int:
        fields = {"form_token": self.form_token, "shapes": json.dumps(shapes), "done": done}
        return self.page.post(f"/pictures/{number}/shapes", data=fields).status_code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("b/two.png", "one.png", "three.png"):
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (90, 120, 3), np.uint8)).save(path)
    native_picture.cache_clear()
    return tmp_path / "scans"


@pytest.fixture
def opened(folder: Path, tmp_path: Path) -> Opened:
    file, keys = tmp_path / "scans.truth.json", tmp_path / "keys"
    keys.mkdir()
    labels = LabelSet(folder, file)
    page = TestClient(application(labels, keys), base_url="http://127.0.0.1")
    page.post("/login", data={"token": People(keys).shared_token()})
    form_token = re.findall(r'name="form_token" value="([^"]+)"', page.get("/").text)[0]
    return Opened(page, labels, file, form_token)


def test_a_stranger_sees_the_login_form_and_saves_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    page = TestClient(
        application(LabelSet(folder, tmp_path / "t.json"), tmp_path / "keys"), base_url="http://127.0.0.1"
    )
    for path in ("/", "/pictures/0", "/pictures/0/picture.png"):
        assert "in the terminal" in page.get(path).text
    assert page.post("/pictures/0/shapes", data={"shapes": "[]"}).status_code == 403
    assert not (tmp_path / "t.json").exists()


def test_shapes_are_saved_with_name_hash_and_size_and_no_pixel(opened: Opened, folder: Path) -> None:
    assert opened.save(0, [BOX]) == 200
    record = json.loads(opened.file.read_text())["pictures"][0]
    assert record["name"] == "b/two.png" and len(record["sha256"]) == 64
    assert set(record) == {"name", "sha256", "width", "height", "shapes"}
    assert not [p for p in folder.rglob("*") if p.suffix != ".png" and p.is_file()]


def test_what_was_done_is_gone_past_when_the_page_is_opened_again(opened: Opened, folder: Path) -> None:
    assert opened.save(0, [BOX], done="yes") == 200
    again = LabelSet(folder, opened.file)
    assert again.first_open() == 1 and again.done == 1
    assert again.labelled(0).shapes[0].box == (2, 3, 10, 12)
    assert opened.page.get("/").url.path == "/pictures/1"


@pytest.mark.parametrize(
    "shapes", [{"label": "caliper"}, [{"label": "caliper"}], [{"label": "x", "box": [0, 0, 2, 2]}], 7, "[" * 5000]
)
def test_wrong_shapes_cost_that_request_and_leave_the_labels(opened: Opened, shapes: object) -> None:
    opened.save(0, [BOX])
    assert opened.save(0, shapes) == 400
    assert len(Truth.load(opened.file).pictures[0].shapes) == 1


def test_a_form_of_another_site_or_session_is_refused(opened: Opened) -> None:
    opened.form_token = "guessed"
    assert opened.save(0, [BOX]) == 403
    answer = opened.page.post("/pictures/0/shapes", data={}, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403 and not opened.file.exists()


def test_a_picture_that_is_not_there_is_a_page_that_says_so(opened: Opened) -> None:
    assert opened.page.get("/pictures/9").status_code == 404
    assert opened.save(9, [BOX]) == 404


def test_a_changed_picture_is_not_shown_over_its_old_labels(opened: Opened, folder: Path) -> None:
    opened.save(0, [BOX])
    Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(folder / "b/two.png")
    native_picture.cache_clear()
    assert "is not the file that was labelled" in opened.page.get("/pictures/0").text
    assert opened.save(0, []) == 503
    assert len(Truth.load(opened.file).pictures[0].shapes) == 1


def test_labels_of_pictures_that_are_elsewhere_now_stay_in_the_file(opened: Opened, folder: Path) -> None:
    opened.save(0, [BOX])
    (folder / "b/two.png").unlink()
    again = LabelSet(folder, opened.file)
    again.put(0, [], done=True)
    assert [p.name for p in Truth.load(opened.file).pictures] == ["b/two.png", "one.png"]


def test_it_listens_on_loopback_and_a_second_one_on_the_same_labels_is_refused(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    with labelling(folder, file) as page:
        assert page.address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(page.address, timeout=20) as answer:
            assert b"Token" in answer.read()
        with pytest.raises(UsageError, match="open in another process"), labelling(folder, file):
            pass
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(page.address, timeout=5)
    assert not list(tmp_path.glob(".*lock"))


def test_a_folder_without_a_picture_and_a_damaged_file_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no picture"), labelling(tmp_path / "empty", tmp_path / "t.json"):
        pass
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(SourceError, match=r"t\.json"), labelling(folder, tmp_path / "t.json"):
        pass
