"""The kept images on the site's page: newest first, page by page, each with the frame it was made from."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from usfmae.client.intake import inventory
from usfmae.client.page.app import application
from usfmae.client.review import corpus_view
from usfmae.client.site import Site, create
from usfmae.core import keys
from usfmae.core.config.site import SiteSettings
from usfmae.core.corpus.shard import FOLDER, PackedImage, read_index, write_shard
from usfmae.core.errors import SourceError
from usfmae.core.phantom import Tissue, write_still


def made(tmp_path: Path) -> Site:
    public = tmp_path / "coordinator.pem"
    public.write_text(keys.public_pem(keys.new_signing_key()))
    (tmp_path / "scans").mkdir()
    settings = SiteSettings(
        name="st-olav", server="https://fl.example:8443", sources=(tmp_path / "scans",), image_size=64, disk_floor_gb=0
    )
    return create(tmp_path / "site", settings, None, public)


def shelved(site: Site, name: str, *values: int) -> None:
    """A shard of plain gray images of these values."""
    items = [PackedImage(np.full((64, 64), value, np.uint8), f"{name} {value}", "g") for value in values]
    write_shard(site.corpus, name, items)


def opened(site: Site) -> TestClient:
    page = TestClient(application(site), base_url="http://127.0.0.1")
    page.post("/login", data={"token": (site.root / "keys" / "page.token").read_text().strip(), "next": "/"})
    return page


def gray(page: TestClient, place: str) -> int:
    answer = page.get(f"{place}/image.png")
    assert answer.headers["cache-control"] == "no-store" and answer.headers["content-type"] == "image/png"
    return int(np.asarray(Image.open(io.BytesIO(answer.content)))[0, 0])


def places(page: TestClient, path: str) -> list[str]:
    return [part.split('"')[0] for part in page.get(path).text.split('<li><a href="')[1:]]


def test_newest_first_page_by_page_and_nothing_twice(tmp_path: Path) -> None:
    site = made(tmp_path)
    shelved(site, "0001-000000", *range(30))
    shelved(site, "0001-000001", *range(100, 110))
    page = opened(site)
    first, second, beyond = (places(page, f"/kept?page={n}") for n in (1, 2, 3))
    assert (len(first), len(second), beyond) == (24, 16, [])
    assert [gray(page, place) for place in first[:12]] == [*range(109, 99, -1), 29, 28]
    assert len({*first, *second}) == 40 and gray(page, second[-1]) == 0
    text = page.get(first[10]).text
    assert f'href="{first[9]}">newer' in text and f'href="{first[11]}">older' in text
    assert ">newer<" not in page.get(first[0]).text and ">older<" not in page.get(second[-1]).text
    shelved(site, "0002-000000", 200)
    assert gray(page, places(page, "/kept")[0]) == 200, "a new shard does not show"


@pytest.mark.parametrize("page_number", ["0", "-1", "x", "9" * 30, "1<b>"])
def test_a_page_number_that_is_none_is_the_first_or_an_empty_one(tmp_path: Path, page_number: str) -> None:
    site = made(tmp_path)
    shelved(site, "0001-000000", 1)
    assert len(places(opened(site), f"/kept?page={page_number}")) == 1


@pytest.mark.parametrize("place", ["0001-000000.gray/7", "..%2F..%2Fkeys%2Fsecret/0", "0001-000000.gray/-1", "x/0"])
def test_what_is_no_image_is_not_found(tmp_path: Path, place: str) -> None:
    site = made(tmp_path)
    shelved(site, "0001-000000", 1)
    page = opened(site)
    for path in (f"/kept/{place}", f"/kept/{place}/image.png", f"/kept/{place}/before.png"):
        assert page.get(path).status_code == 404, path


def test_nothing_kept_is_said(tmp_path: Path) -> None:
    assert "No image is kept yet" in opened(made(tmp_path)).get("/kept").text


def test_a_kept_frame_is_shown_as_recorded_as_changed_and_as_cleaned(tmp_path: Path) -> None:
    site = made(tmp_path)
    for number in range(2):
        write_still(tmp_path / "scans" / f"{number}.dcm", Tissue(63 + number, "sector"))
    inventory.take_in(site)
    page = opened(site)
    links = places(page, "/kept")
    assert len(links) == 2
    before, mask, after = (_pixels(page, f"{links[0]}/{which}.png") for which in ("before", "mask", "after"))
    assert before.shape == mask.shape == after.shape and (before != after).any()
    red = (mask.astype(int)[..., 0] - mask[..., 1]) > 90
    assert red.any() and (before[~red] == after[~red]).mean() > 0.95, "something changed that is not marked"
    (tmp_path / "scans" / "0.dcm").unlink()
    (tmp_path / "scans" / "1.dcm").unlink()
    gone = opened(site)
    assert "not in the sources any more" in gone.get(links[0]).text
    assert gone.get(f"{links[0]}/before.png").status_code == 503 and gone.get(f"{links[0]}/image.png").is_success


def _pixels(page: TestClient, path: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.get(path).content)).convert("RGB"))


def test_the_frame_of_an_image_is_found_by_its_name(tmp_path: Path) -> None:
    """Also in a clip of which every tenth frame was kept, beside other scans of the patient."""
    site = made(tmp_path)
    ids = [corpus_view.image_id("b" * 64, frame) for frame in (0, 10, 20)]
    write_shard(site.corpus, "0001-000000", [PackedImage(np.zeros((64, 64), np.uint8), id_, "patient") for id_ in ids])
    ledger = site.corpus / "ledger"
    (ledger / "tasks").mkdir(parents=True)
    scans = [{"id": letter * 64, "kept": 3} for letter in "abc"]
    (ledger / "tasks" / "0001-000000.json").write_text(json.dumps({"scans": scans}))
    group = {"a": "patient", "b": "patient", "c": "other"}
    rows = [{"place": x * 64, "outcome": "scan", "id": x * 64, "kind": "raster", "group": group[x]} for x in "abc"]
    (ledger / "places.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    for row, frame in enumerate((0, 10, 20)):
        assert corpus_view.frame_of(site, corpus_view.KeptImage("0001-000000.gray", row)) == ("b" * 64, frame)


def test_an_image_of_another_corpus_has_no_frame(tmp_path: Path) -> None:
    site = made(tmp_path)
    shelved(site, "imported", 5)
    with pytest.raises(SourceError, match="not known to this corpus"):
        corpus_view.origin(site, corpus_view.KeptImage("imported.gray", 0))
    assert read_index(site.corpus / FOLDER / "imported.gray.json").shard.count == 1


def test_the_list_says_what_is_guaranteed_and_what_is_best_effort(tmp_path: Path) -> None:
    site = made(tmp_path)
    shelved(site, "0001-000000", 1)
    text = opened(site).get("/kept").text
    assert "Guaranteed: identifiers." in text and "Best effort: calipers, rulers, bars" in text
