"""Reconstructions of each round stay at the site, are bounded, and never cost a round."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.client.conftest import MODEL, TRAIN
from tests.client.test_page import log_in
from usfmae.client import outbox
from usfmae.client.page.app import application
from usfmae.client.review import gallery
from usfmae.client.site import Site, write_json
from usfmae.core.corpus.batch import Corpus
from usfmae.core.federated.messages import TrainRequest
from usfmae.core.mae.model import fresh

REQUEST = TrainRequest("demo", 1, "b" * 64, 0, 3, "{}")


def drawn(site: Site, number: int) -> None:
    corpus = Corpus([site.corpus])
    model = fresh(MODEL, seed=number)
    gallery.draw(site, replace(REQUEST, round=number), model, corpus, np.arange(8), TRAIN)


def test_a_panel_for_each_round_and_no_more_than_the_newest(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST", 2)
    for number in (1, 2, 3):
        drawn(site, number)
        for file in (site.root / "gallery").iterdir():
            os.utime(file, ns=(0, int(file.stem[-5:]) * 10**9))
    assert [number for number, _, _ in gallery.panels(site)] == [3, 2]
    assert (site.root / "gallery" / "demo-r00003.png").read_bytes().startswith(b"\x89PNG")


def test_what_goes_wrong_costs_the_panel_alone(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    model: Any = None
    with caplog.at_level(logging.WARNING):
        gallery.draw(site, REQUEST, model, Corpus([site.corpus]), np.arange(8), TRAIN)
    assert "no panel" in caplog.text and not gallery.panels(site)


def test_the_page_shows_losses_intake_and_panels(make_site: Callable[..., Site]) -> None:
    site = make_site()
    with TestClient(application(site), base_url="http://127.0.0.1") as page:
        log_in(page, site)
        assert "No round was trained here yet" in page.get("/learning").text
        for number in (1, 2):
            drawn(site, number)
            place = outbox.folder(site, f"r{number:05d}-x")
            place.mkdir(parents=True)
            record = {"loss_before": 0.9 / number, "loss_after": 0.7 / number}
            entry = {"id": place.name, "created": float(number), "release": "auto", "bytes": 1, "campaign": "demo"}
            write_json(place / "entry.json", {**entry, "round": number, "record": record})
        site.note("corpus.prepared", kept=90, quarantined=4, new_kept=90, new_quarantined=4)
        site.note(
            "corpus.prepared", kept=90, quarantined=4, new_kept=0, new_quarantined=0
        )  # an hour later: nothing new
        shown = page.get("/learning").text
        assert "after training here, round 2: 0.35" in shown and "kept back" in shown
        assert "after round 2 of demo" in shown and "90" in shown and "180" not in shown
        assert page.get("/learning/demo-r00002.png").headers["cache-control"] == "no-store"
        assert page.get("/learning/..%2Fsite.yaml").status_code == 404
