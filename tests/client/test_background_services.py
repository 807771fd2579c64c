"""What runs beside the agent: received instances go into the corpus and then away, or stay for a person."""

from __future__ import annotations

import os
import shutil
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.ports import free_port
from usfmae.client import background_services
from usfmae.client.background_services import spool_of, watched
from usfmae.client.intake import inventory
from usfmae.client.intake.spool import CLEANED, Spool
from usfmae.client.review import corpus_view, quarantine
from usfmae.client.review.frame_preview import image_id, trusting
from usfmae.client.site import Site
from usfmae.core.config import CleanSettings, ReadSettings
from usfmae.core.config.sources import IntakeSettings
from usfmae.core.corpus.shard import FOLDER, read_index
from usfmae.core.errors import ConfigError, ResourceError, SourceError
from usfmae.core.phantom import Tissue, write_still
from usfmae.core.read import discover, read
from usfmae.core.read.discover import Candidate
from usfmae.core.types import CleanImage, Quarantined, Scan

needs_tesseract = pytest.mark.skipif(not shutil.which("tesseract"), reason="tesseract is not installed")


@needs_tesseract
@pytest.mark.parametrize("relative", [False, True])
def test_received_instances_are_packed_and_then_deleted(
    make_site: Callable[..., Site], tmp_path: Path, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(images=0, image_size=32)
    if relative:
        monkeypatch.chdir(site.root.parent)
        site = Site.open(Path(site.root.name))
    spool = spool_of(site)
    write_still(tmp_path / "still.dcm", Tissue(7, "linear"))
    spool.add((tmp_path / "still.dcm").read_bytes())
    spool.add(b"\x89PNG\r\n\x1a\n damaged")  # goes to quarantine: a person must still be able to see it
    summary = inventory.take_in(site)
    assert (summary.scans, summary.kept) == (2, 1)
    assert len(spool.files()) == 1 and spool.files()[0].read_bytes().endswith(b"damaged")
    assert sum(read_index(p).shard.count for p in (site.corpus / FOLDER).glob("*.json")) == 1
    (held,) = quarantine.waiting(site, quarantine.Intake().refresh(site.corpus))
    quarantine.drop(site, held)
    assert inventory.take_in(site).kept == 0
    assert spool.files() == []


@needs_tesseract
def test_what_was_received_can_be_looked_at_for_some_days(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site(images=0, image_size=32, intake=IntakeSettings(keep_days=3))
    write_still(tmp_path / "still.dcm", Tissue(7, "linear"))
    spool = spool_of(site)
    spool.add((tmp_path / "still.dcm").read_bytes())
    assert inventory.take_in(site).kept == 1
    assert spool.files() == [], "still waits to be cleaned"
    album = corpus_view.CorpusView().refresh(site.corpus)
    (one,) = album.slice(0, 1)
    assert corpus_view.pictures(site, corpus_view.origin(site, one))["before"].startswith(b"\x89PNG")
    (aside,) = (site.root / CLEANED).glob("*/*.dcm")
    assert aside.read_bytes() == (tmp_path / "still.dcm").read_bytes()
    os.utime(aside, (0, time.time() - 4 * 86400))
    assert inventory.take_in(site).kept == 0 and not aside.exists()
    with pytest.raises(SourceError, match=r"intake\.keep_days"):
        corpus_view.origin(site, one)


def test_what_is_only_kept_to_be_looked_at_goes_first_where_the_disk_is_short(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", b"s" * 32)
    spool.add(b"cleaned")
    assert spool.drop(spool.files(), keep=True) == 1 and spool.expire(3) == 0
    spool.floor_bytes = spool.free_bytes() - 1_000_000_000
    assert spool.expire(3) == 1


@needs_tesseract
def test_a_frame_the_machine_doubts_can_be_released(make_site: Callable[..., Site], tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    write_still(scans / "still.dcm", Tissue(9, "linear"))
    site = make_site(images=0, image_size=32, sources=(scans,), clean=CleanSettings(smallest_region=0.9))
    assert inventory.take_in(site).kept == 0
    (held,) = quarantine.waiting(site, quarantine.Intake().refresh(site.corpus))
    assert held.reason == "region-small"
    looked = quarantine.picture(site, held)
    assert looked.before.startswith(b"\x89PNG") and looked.after.startswith(b"\x89PNG")
    quarantine.release(site, held)
    (index,) = (site.corpus / FOLDER).glob("*.json")
    assert (
        read_index(index).shard.count == 1 and quarantine.waiting(site, quarantine.Intake().refresh(site.corpus)) == []
    )


@needs_tesseract
def test_a_frame_in_an_archive_can_be_released_and_the_agent_opens_no_archive(
    make_site: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_still(tmp_path / "still.dcm", Tissue(71, "linear"))
    scans = tmp_path / "scans"
    scans.mkdir()
    with zipfile.ZipFile(scans / "export.zip", "w") as archive:
        archive.write(tmp_path / "still.dcm", "DICOM/IM1")
    site = make_site(images=0, image_size=32, sources=(scans,), clean=CleanSettings(smallest_region=0.9))
    assert inventory.take_in(site).kept == 0
    (held,) = quarantine.waiting(site, quarantine.Intake().refresh(site.corpus))
    monkeypatch.setattr("zipfile.ZipFile", lambda *_: 1 / 0)  # in this process; the decoding ones are others
    quarantine.release(site, held, "dr-k")
    (index,) = (site.corpus / FOLDER).glob("released-*.json")
    assert read_index(index).ids == (image_id(held.scan, held.index),)
    (decision,) = quarantine.decisions(site).values()
    assert (decision["decision"], decision["reason"], decision["by"]) == ("released", "region-small", "dr-k")
    assert "quarantine.released" in site.audit_log.read_text()


@needs_tesseract
@pytest.mark.parametrize("reason", ["text-left", "much-suspected"])
def test_a_frame_kept_back_after_cleaning_is_offered_as_far_as_cleaning_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    from usfmae.client.review import frame_preview
    from usfmae.core.clean import clean, safe
    from usfmae.core.config import Settings
    from usfmae.core.sandbox import preview
    from usfmae.core.sandbox.records import Answer, NoPicture, Picture, PreviewFrame

    write_still(tmp_path / "still.dcm", Tissue(71, "linear"))
    (scan,) = discover([tmp_path / "still.dcm"], b"s" * 32, ReadSettings())
    assert isinstance(scan, Scan)
    (frame,) = read(scan, ReadSettings())
    whole = clean(frame, CleanSettings())
    assert isinstance(whole, CleanImage)
    original = safe.verified
    if reason == "text-left":  # verification is never content
        monkeypatch.setattr(safe, "verified", lambda *rest: (*original(*rest)[:3], False))
    else:
        monkeypatch.setattr(safe, "suspected", lambda *rest: 0.03)
    kept_back = clean(frame, CleanSettings())
    assert isinstance(kept_back, Quarantined) and kept_back.reason == reason
    assert kept_back.image is not None and np.array_equal(kept_back.image.pixels, whole.pixels)
    answers: list[tuple[Picture | NoPicture, bytes]] = []

    def answer(record: Answer, blob: bytes = b"") -> None:
        if isinstance(record, (Picture, NoPicture)):
            answers.append((record, blob))

    settings = Settings.model_validate({"model": {"image_size": 32}})
    preview.preview_frame(PreviewFrame(scan, 0), settings, answer)
    looked = frame_preview.assembled(answers)
    assert looked.after.startswith(b"\x89PNG") and looked.shape[:2] == (32, 32) and not looked.why_not


def test_setting_doubts_aside_changes_nothing_else() -> None:
    settings = CleanSettings(inpaint_radius=5)
    changed = {k for k, v in trusting(settings).model_dump().items() if v != settings.model_dump()[k]}
    assert changed == {"smallest_region"}


def test_metrics_and_page_answer_while_the_block_runs(make_site: Callable[..., Site]) -> None:
    site = make_site(metrics={"port": free_port()})
    with watched(site) as ports:
        text = urllib.request.urlopen(f"http://127.0.0.1:{ports['metrics']}/metrics", timeout=5).read().decode()
    assert "usfmae_site_images 16.0" in text
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{ports['metrics']}/metrics", timeout=1)


def test_a_taken_port_and_a_missing_allow_list_stop_the_start(make_site: Callable[..., Site]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        site = make_site("a", page={"port": taken.getsockname()[1]})
        with pytest.raises(ResourceError, match=r"page\.port"), watched(site):
            pass
    with pytest.raises(ConfigError, match=r"cstore\.allow"), watched(make_site("b", cstore={"port": free_port()})):
        pass


def test_an_instance_whose_identification_took_too_much_memory_waits_for_a_person(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    from usfmae.core.read.discover import Examined
    from usfmae.core.sandbox.worker import Worker

    def hogged(self: Worker, candidate: Candidate) -> dict[str, object]:
        return self._entry(Examined("quarantined", reason="too-much-memory"), candidate)

    monkeypatch.setattr(Worker, "identify", hogged)
    site = make_site(images=0, image_size=32)
    spool_of(site).add(b"a bomb")
    for _ in range(2):
        assert inventory.take_in(site).quarantined == 1
        assert len(spool_of(site).files()) == 1, "deleted, though nobody has seen it"


def test_new_scans_are_cleaned_at_the_lowest_priority(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nsleep 0.3; nice > {tmp_path}/nice\n")
    program.chmod(0o700)
    monkeypatch.setattr(background_services.sys, "executable", str(program))
    background_services._take_in(make_site(), threading.Event())
    assert (tmp_path / "nice").read_text() == "19\n"


def test_an_unforeseen_error_of_a_service_is_said_once_and_it_goes_on(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site, calls, stop = make_site(), [], threading.Event()

    def act() -> None:
        calls.append(1)
        raise RuntimeError("never thought of")

    background_services._repeat("intake", site, stop, 0.0, act)
    deadline = time.monotonic() + 10
    while len(calls) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    assert len(calls) >= 2 and caplog.text.count("never thought of") == 1
    assert "intake.failed" in site.audit_log.read_text()
