"""The site's page: private as a whole, pause, approval, quarantine; and its figures."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from usfmae.client import outbox, site_policy
from usfmae.client.page.app import application
from usfmae.client.page.view import figures
from usfmae.client.review import quarantine
from usfmae.client.review.frame_preview import FramePreview
from usfmae.client.rounds import campaigns
from usfmae.client.site import Site, create, write_json
from usfmae.core import keys, metrics
from usfmae.core.checkpoint_header import recipe_text
from usfmae.core.config import ModelSettings, TrainRecipe
from usfmae.core.config.site import SiteSettings
from usfmae.core.config.train import Recipe
from usfmae.core.corpus.shard import FOLDER, read_index
from usfmae.core.federated.messages import TrainRequest
from usfmae.core.types import content_id
from usfmae.core.web.access import People

PNG = b"\x89PNG not really"
SCAN = "a" * 64


@pytest.fixture
def site(tmp_path: Path) -> Site:
    public = tmp_path / "coordinator.pem"
    public.write_text(keys.public_pem(keys.new_signing_key()))
    settings = SiteSettings(name="st-olav", server="https://fl.example:8443", sources=(tmp_path / "scans",))
    made = create(tmp_path / "site", settings, None, public)
    tasks = made.corpus / "ledger" / "tasks"
    tasks.mkdir(parents=True)
    read = {"id": SCAN, "outcome": "read", "reason": "", "frames": 4, "duplicates": 1, "kept": 1, "notes": []}
    whole = {"id": "b" * 64, "outcome": "quarantined", "reason": "unreadable", "frames": 0, "duplicates": 0, "kept": 0}
    scans = [{**read, "quarantined": {"text-left": [2, 3]}}, {**whole, "notes": [], "quarantined": {}}]
    (tasks / "0001-000000.json").write_text(json.dumps({"scans": scans}))
    return made


@pytest.fixture
def page(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr(
        quarantine, "picture", lambda site, held: FramePreview(PNG, PNG + b"2", PNG + b"red", bytes(64), (8, 8))
    )
    monkeypatch.setattr(quarantine, "scan_of", lambda site, id_: type("Found", (), {"group": "g"})())
    with TestClient(application(site), base_url="http://127.0.0.1") as client:  # one event loop, as the server has
        yield client


def log_in(page: TestClient, site: Site) -> str:
    token = (site.root / "keys" / "page.token").read_text().strip()
    answer = page.post("/login", data={"token": token, "next": "/"})
    return re.search(r'name="form_token" value="([\w-]+)"', answer.text)[1]  # type: ignore[index]


def entry(index: int) -> str:
    return content_id(SCAN, str(index))[:16]


@pytest.mark.parametrize("path", ["/", "/quarantine", "/outbox", "/audit", f"/quarantine/{entry(2)}/before.png"])
def test_nothing_is_shown_without_the_token(page: TestClient, path: str) -> None:
    answer = page.get(path, follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"].startswith("/login")
    assert "st-olav" not in answer.text and PNG not in answer.content


@pytest.mark.parametrize("path", ["/pause", f"/quarantine/{entry(2)}/decide", "/outbox/r1", "/campaigns/x"])
def test_nothing_is_changed_without_the_token_or_from_another_page(page: TestClient, site: Site, path: str) -> None:
    assert page.post(path, data={"form_token": "x"}).status_code == 403
    log_in(page, site)
    assert page.post(path, data={"form_token": "x"}).status_code == 403
    assert not site_policy.paused(site) and quarantine.decisions(site) == {}


@pytest.mark.parametrize("path", ["/", "/quarantine", "/outbox", "/campaigns", "/audit"])
def test_an_unforeseen_exception_costs_its_request(site: Site, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    def unforeseen(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nobody thought of this")

    with TestClient(application(site), base_url="http://127.0.0.1", raise_server_exceptions=False) as page:
        log_in(page, site)
        with monkeypatch.context() as patched:
            patched.setattr("usfmae.client.outbox.Outbox.entries", unforeseen)
            answer = page.get(path)
        assert answer.status_code == 500 and "nobody thought" not in answer.text
        assert page.get(path).status_code == 200


def test_pause_and_resume(page: TestClient, site: Site) -> None:
    mark = log_in(page, site)
    assert "declines to train" in page.post("/pause", data={"form_token": mark, "now": "pause"}).text
    assert site_policy.paused(site)
    page.post("/pause", data={"form_token": mark, "now": "resume"})
    assert not site_policy.paused(site)


def test_release_puts_the_frame_into_the_corpus_once(page: TestClient, site: Site) -> None:
    mark = log_in(page, site)
    assert "text-left" in page.get("/quarantine").text
    picture = page.get(f"/quarantine/{entry(2)}/before.png")
    assert picture.content == PNG and picture.headers["cache-control"] == "no-store"
    page.post(f"/quarantine/{entry(2)}/decide", data={"form_token": mark, "decision": "release"})
    (index,) = (site.corpus / FOLDER).glob("released-*.json")
    assert read_index(index).ids == (content_id(SCAN, "2"),)
    again = page.post(f"/quarantine/{entry(2)}/decide", data={"form_token": mark, "decision": "drop"})
    assert again.status_code == 400 and "released already" in again.text
    page.post(f"/quarantine/{entry(3)}/decide", data={"form_token": mark, "decision": "drop"})
    assert [h.reason for h in quarantine.waiting(site, quarantine.Intake().refresh(site.corpus))] == ["unreadable"]
    events = [json.loads(line)["event"] for line in site.audit_log.read_text().splitlines()]
    assert events[-2:] == ["quarantine.released", "quarantine.dropped"]


def test_several_entries_are_decided_at_once_by_a_named_person(page: TestClient, site: Site) -> None:
    token = People(site.root / "keys").add("anna")
    answer = page.post("/login", data={"token": token, "next": "/quarantine"})
    form_token = re.search(r'name="form_token" value="([\w-]+)"', answer.text)[1]  # type: ignore[index]
    assert f"/quarantine/{entry(2)}/changed.png" in answer.text and "cleaned picture? Then drop" in answer.text
    assert page.get(f"/quarantine/{entry(2)}/changed.png").content == PNG + b"red"
    whole = content_id("b" * 64, "-1")[:16]
    chosen = {"form_token": form_token, "id": [entry(2), whole, "f" * 16], "decision": "release"}
    text = page.post("/quarantine/decide", data=chosen).text
    assert "1 released." in text and "could not be read at all" in text and "does not exist" in text
    both = {"form_token": form_token, "id": [entry(3), whole], "decision": "drop"}
    assert "2 dropped." in page.post("/quarantine/decide", data=both).text
    assert page.post("/quarantine/decide", data={**both, "form_token": "x"}).status_code == 403
    made = [json.loads(line) for line in site.audit_log.read_text().splitlines()]
    assert [e["by"] for e in made if e["event"].startswith("quarantine.")] == ["anna"] * 3


def test_what_could_not_be_read_can_only_be_dropped(page: TestClient, site: Site) -> None:
    mark = log_in(page, site)
    whole = content_id("b" * 64, "-1")[:16]
    assert "Release" not in page.get(f"/quarantine/{whole}").text
    answer = page.post(f"/quarantine/{whole}/decide", data={"form_token": mark, "decision": "release"})
    assert answer.status_code == 400 and not list((site.corpus / FOLDER).glob("*"))


def test_an_entry_nobody_knows_is_not_found(page: TestClient, site: Site) -> None:
    log_in(page, site)
    for name in ("0" * 16, "..%2F..%2Fkeys%2Fsecret", "<b>"):
        assert page.get(f"/quarantine/{name}").status_code == 404


def test_a_campaign_is_read_in_words_and_agreed_to(page: TestClient, site: Site) -> None:
    mark = log_in(page, site)
    recipe = Recipe(ModelSettings(), TrainRecipe())
    request = TrainRequest("lungs", 1, "b", 0, 200, recipe_text(recipe.model, recipe.train))
    assert campaigns.state_of(site, request, recipe) == "waiting"
    assert "asks for something new" in page.get("/").text
    assert "200 steps of 64 pictures" in page.get("/campaigns").text
    shown = page.post("/campaigns/lungs", data={"form_token": mark, "decision": "approve"}).text
    assert "agreed: its rounds are trained" in shown and campaigns.state_of(site, request, recipe) == "agreed"
    assert page.post("/campaigns/none", data={"form_token": mark, "decision": "approve"}).status_code == 400
    assert "asks for something new" not in page.get("/").text


def test_approval_of_what_waits_to_leave(page: TestClient, site: Site) -> None:
    mark = log_in(page, site)
    record = {"images": 9, "steps": 5, "seconds": 1.0, "loss_before": 0.5, "loss_after": 0.4, "content": "c" * 64}
    entry = {"campaign": "<b>c</b>", "round": 1, "recipient": "https://fl", "tensors": 3, "bytes": 99, "norm": 1.0}
    entry |= {"drawn": {"images": 300, "patients": 60, "largest_share": 0.021}}
    entry |= {"floor": {"min_images": 256, "min_patients": 50, "max_patient_share": 0.1}}
    place = site.root / "outbox" / "r00001-abc"
    place.mkdir(parents=True)
    write_json(
        place / "entry.json",
        {"id": place.name, "created": 1e9, "release": "approve", "record": {**record, "encoding": "int8"}, **entry},
    )
    shown = page.get("/outbox").text
    assert "drawn on     300 images of 60 patients, largest share of one patient 2.1%, floor kept" in shown
    assert "5 steps, 1 s; 9 images were there to draw" in shown and "<b>c</b>" not in shown
    assert "1 update wait" in page.get("/").text
    assert "approved" in page.post(f"/outbox/{place.name}", data={"form_token": mark, "decision": "approve"}).text
    assert outbox.state(place) == "released"
    twice = page.post(f"/outbox/{place.name}", data={"form_token": mark, "decision": "reject"})
    assert twice.status_code == 400 and "already" in twice.text


def test_a_held_update_shows_its_picture_and_says_how_to_decide(page: TestClient, site: Site) -> None:
    place = site.root / "outbox" / "r00001-abc"
    place.mkdir(parents=True)
    record = {"images": 9, "steps": 5, "seconds": 1.0, "loss_before": 0.5, "loss_after": 0.4, "content": "c" * 64}
    entry = {"campaign": "c", "round": 1, "recipient": "https://fl", "tensors": 3, "bytes": 99, "norm": 1.0}
    entry |= {"probe": {"held": "95% is one direction", "picture": True}, "release": "approve", "created": 1e9}
    write_json(place / "entry.json", {"id": place.name, "record": {**record, "encoding": "int8"}, **entry})
    (place / outbox.PICTURE).write_bytes(b"\x89PNG")
    picture = f"/outbox/{place.name}/probe.png"
    assert page.get(picture, follow_redirects=False).status_code == 303, "not without a login"
    log_in(page, site)
    shown = page.get("/outbox").text
    assert "HELD BACK: 95% is one direction" in shown and "Not alike: approve" in shown and picture in shown
    assert page.get(picture).content == b"\x89PNG"
    assert page.get("/outbox/r00009-none/probe.png").status_code == 404


def test_an_update_that_waits_shows_on_every_page(page: TestClient, site: Site) -> None:
    log_in(page, site)
    assert "badge" not in page.get("/audit").text
    place = site.root / "outbox" / "r00001-x"
    place.mkdir(parents=True)
    write_json(place / "entry.json", {"id": place.name, "created": 1.0, "release": "approve", "bytes": 1})
    assert '<span class="badge" title="waits for a person">1</span>' in page.get("/audit").text
    write_json(site.root / "status.json", {"state": "waiting for approval", "online": True})
    with site.served_alone():
        assert 'pill warn">waiting for approval' in page.get("/").text


def test_a_broken_audit_log_is_said_loudly(page: TestClient, site: Site) -> None:
    log_in(page, site)
    assert "unbroken" in page.get("/audit").text
    site.audit_log.write_text(site.audit_log.read_text().replace("st-olav", "other"))
    assert "hash chain is broken" in page.get("/audit").text


def test_the_overview_warms_the_light_table_up_once_in_a_while(
    page: TestClient, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def picture(site: Site, held: quarantine.QuarantinedFrame) -> FramePreview:
        made.append(held.id)
        return FramePreview(PNG)

    monkeypatch.setattr(quarantine, "picture", picture)
    log_in(page, site)
    for _ in range(3):
        assert page.get("/").status_code == 200
    deadline = time.monotonic() + 10
    while len(made) < 2 and time.monotonic() < deadline:
        page.get("/outbox")
    assert len(made) == 2


def test_the_audit_log_is_searched_and_saved(page: TestClient, site: Site) -> None:
    assert page.get("/audit.csv", follow_redirects=False).headers["location"].startswith("/login")
    log_in(page, site)
    site.note("outbox.sent", entry="r1-abc")
    shown = page.get("/audit", params={"event": "outbox", "since": "2026"}).text
    assert "r1-abc" in shown and "page.login" not in shown and "1 entry" in shown
    assert "No entry fits" in page.get("/audit?text=nowhere").text
    wrong = page.get("/audit?since=14.3.")
    assert wrong.status_code == 400 and "is no date" in wrong.text and 'value="14.3."' in wrong.text
    saved = page.get("/audit.json?event=outbox.sent")
    assert saved.headers["content-disposition"] == 'attachment; filename="audit.json"'
    assert [entry["entry"] for entry in saved.json()] == ["r1-abc"]
    assert (
        page.get("/audit.csv?event=outbox.sent").text.splitlines()[0] == "line,time,actor,event,status,by,details,hash"
    )
    assert page.get("/audit.csv?until=soon").status_code == 400


def test_figures_name_only_known_metrics(site: Site) -> None:
    values = figures(site, quarantine.Intake())
    assert set(values) <= set(metrics.ALL)
    assert values["usfmae_site_scans_total"] == 2 and values["usfmae_site_frames_kept_total"] == 1
    assert values["usfmae_site_quarantined_total"] == {"text-left": 2, "unreadable": 1}
    jobs = site.root / "jobs" / "r1"
    jobs.mkdir(parents=True)
    (jobs / "log.jsonl").write_text(
        '{"step": 1, "loss": 0.9}\n{"step": 2, "loss": 0.8, "seconds": 1.5}\n{"step": 3, "l'
    )
    assert figures(site, quarantine.Intake())["usfmae_site_loss"] == 0.8


def test_how_long_the_aggregator_has_been_silent_is_told_while_it_is(site: Site) -> None:
    write_json(site.root / "status.json", {"time": 5000.0, "online": False, "contact": 1000.0})
    assert figures(site, quarantine.Intake())["usfmae_site_last_contact_timestamp_seconds"] == 1000.0


def test_an_update_that_was_sent_is_read_once_and_one_that_waits_every_time(site: Site) -> None:
    shelf, place = outbox.Outbox(site), site.root / "outbox" / "r1"
    place.mkdir(parents=True)
    write_json(place / "entry.json", {"id": "r1", "created": 1.0, "release": "approve", "bytes": 5})
    assert [e["state"] for e in shelf.entries()] == ["waiting"]
    write_json(place / "sent.json", {"time": 2.0})
    assert [e["state"] for e in shelf.entries()] == ["sent"]
    (place / "entry.json").write_text("never read again")
    assert [e["bytes"] for e in shelf.entries()] == [5]


def test_gpu_figures_come_from_nvidias_own_tool(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho '0, 1024, 50'\necho '1, 0, 0'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    values = figures(site, quarantine.Intake())
    assert values["usfmae_site_gpu_memory_bytes"] == {"gpu0": 2**30, "gpu1": 0}
    assert values["usfmae_site_gpu_utilization_ratio"] == {"gpu0": 0.5, "gpu1": 0}
