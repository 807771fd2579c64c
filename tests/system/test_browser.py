"""Both pages in headless Chromium: a person clicks through enrolling, revoking, pausing, the quarantine and labels.

USFMAE_SCREENSHOTS=docs/_static writes the pictures of the documentation; they show simulated scans only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from usfmae.client import site_policy
from usfmae.client.intake import inventory
from usfmae.client.page.app import application as site_page
from usfmae.client.page.app import serving
from usfmae.client.review import quarantine
from usfmae.client.review.corpus_view import CorpusView
from usfmae.client.site import Site, create
from usfmae.client.status import write_status
from usfmae.core import keys
from usfmae.core.annotate import Truth
from usfmae.core.annotate.page import labelling
from usfmae.core.config import CleanSettings
from usfmae.core.config.site import SiteSettings
from usfmae.core.federated.enrolment import Enrolment, proved
from usfmae.core.phantom import Tissue, write_still
from usfmae.server.dashboard.app import application as coordinator_page
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger

from .conftest import needs

pytestmark = pytest.mark.system

PHONE = {"width": 390, "height": 800}
DESK = {"width": 1200, "height": 860}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -r tests/system/requirements.txt")
    program = needs("chromium", "chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def picture(page: Any, name: str) -> None:
    folder = os.environ.get("USFMAE_SCREENSHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=not name.endswith("phone"))


def opened(chromium: Any, size: dict[str, int], scripts: bool = True) -> Any:
    """A page; anything the browser complains about, and any request elsewhere, fails the test at its end."""
    context = chromium.new_context(viewport=size, java_script_enabled=scripts)
    page = context.new_page()
    page.set_default_timeout(90_000)  # decoding a frame may take a minute of a busy machine
    page.complaints = []
    page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" else None)
    page.on(
        "request",
        lambda r: page.complaints.append(r.url) if not r.url.startswith(("http://127.0.0.1", "data:")) else None,
    )
    return page


def enrolment(name: str) -> str:
    return json.dumps(dataclasses.asdict(proved(name, 40_000, keys.new_node_key(), keys.new_signing_key())))


@pytest.fixture
def home(tmp_path: Path) -> Layout:
    """A coordinator with a campaign of twelve rounds, the last one running."""
    home = Layout(tmp_path / "coordinator")
    home.keys.mkdir(parents=True)
    home.address.write_text("0.0.0.0:8443\n")
    _certificate(home)
    ledger = Ledger(home.ledger, create=True)
    ledger.set_fact("campaign", "breast-consortium")
    fill(ledger, rounds=12)
    ledger.close()
    return home


def fill(ledger: Ledger, rounds: int) -> None:
    """Five sites and rounds that learn; in the last one three have answered."""
    names = ("amc-utrecht", "charite-berlin", "rigshospitalet", "st-olav", "uhn-toronto")
    for name in names:
        public = keys.public_pem(keys.new_node_key()), keys.public_pem(keys.new_signing_key())
        ledger.add_site(Enrolment(name, *public, 40_000))
    known = sorted(ledger.sites())
    start, base = time.time() - rounds * 7200, "0" * 64
    with ledger._write() as db:
        for number in range(1, rounds + 1):
            last, opened_at, result = number == rounds, start + number * 7200 - 7000, f"{number:x}" * 64
            loss = 0.31 + 0.3 * math.exp(-number / 5)
            organs = {o: {"loss": loss * (0.8 + 0.1 * i)} for i, o in enumerate(("breast", "lung", "ovary"))}
            seed = {"breast": 0.36, "lung": 0.36, "ovary": 0.42}
            summary = {"loss_before": loss, "loss_after": loss - 0.01, "panel": {"organs": organs, "seed": seed}}
            committed = None if last else opened_at + 4000 + 300 * (number % 5)
            db.execute(
                "INSERT INTO rounds VALUES (?, ?, ?, ?, 200, ?, ?, ?, ?)",
                (number, "open" if last else "committed", base, (number - 1) * 200, opened_at, committed)
                + ((None, None) if last else (result[:64], json.dumps(summary))),
            )
            for i, site in enumerate(known[:3] if last else known):
                bad = number == 7 and i == 3
                verdict = ("norm", "the update is 9.3 times the median") if bad else ("admitted", "")
                db.execute(
                    "INSERT INTO replies (round, site, verdict, detail, images, bytes, norm, weight, loss_before,"
                    " loss_after, received) VALUES (?, ?, ?, ?, ?, 86400000, 0.9, 0.2, ?, ?, ?)",
                    (number, site, *verdict, 8000 + 1000 * i, loss, loss - 0.01, opened_at + 3600 + i),
                )
            base = result[:64]
    ledger.saw(known[:4])


def _certificate(home: Layout) -> None:
    from usfmae.server import certificates

    ca = keys.new_node_key()
    home.ca.write_bytes(certificates.authority("trial", ca))
    home.certificate.write_bytes(certificates.server(("localhost",), ca.public_key(), home.ca.read_bytes(), ca))


def test_coordinator_enrols_and_revokes_a_site(chromium: Any, home: Layout, tmp_path: Path) -> None:
    (tmp_path / "enrol.json").write_text(enrolment("klinikum-graz"))
    with serving(coordinator_page(home), "127.0.0.1", 0) as port:
        page = opened(chromium, DESK)
        page.goto(f"http://127.0.0.1:{port}/")
        assert page.text_content("h1") == "breast-consortium"
        picture(page, "coordinator")
        page.click("nav >> text=Sites")
        page.click("main >> text=Log in")
        page.fill("#token", (home.keys / "page.token").read_text().strip())
        page.click("main >> text=Open")
        page.set_input_files("#file", str(tmp_path / "enrol.json"))
        page.click("button:has-text('Enrol')")
        assert "klinikum-graz is enrolled" in page.text_content("[role=status]")
        row = page.locator("tr", has_text="klinikum-graz")
        row.locator("summary").click()
        row.locator("input[name=typed]").fill("klinikum-graz")
        row.locator("button").click()
        assert "klinikum-graz is revoked" in page.text_content("[role=status]")
        assert page.complaints == []
    states = {s.name: s.state for s in Ledger(home.ledger).sites().values()}
    assert states["klinikum-graz"] == "revoked"


def test_the_running_round_moves_on_the_open_page(chromium: Any, home: Layout) -> None:
    from usfmae.server.ledger import Verdict

    with serving(coordinator_page(home), "127.0.0.1", 0) as port:
        page = opened(chromium, DESK)
        page.goto(f"http://127.0.0.1:{port}/")
        before = page.text_content("section:has(svg.bar)")
        ledger = Ledger(home.ledger)
        missing = sorted(set(ledger.sites()) - set(ledger.verdicts(12)))[0]
        ledger.record(Verdict(12, missing, "norm", "9.3 times the median", bytes=5))
        page.wait_for_selector("section:has(svg.bar) .pill.bad", timeout=20_000)
        assert page.text_content("section:has(svg.bar)") != before
        assert page.complaints == []


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_nothing_runs_over_the_edge(chromium: Any, home: Layout, size: dict[str, int], scripts: bool) -> None:
    with serving(coordinator_page(home), "127.0.0.1", 0) as port:
        page = opened(chromium, size, scripts)
        for path in ("/", "/sites", "/rounds", "/rounds/3", "/lineage", "/login"):
            page.goto(f"http://127.0.0.1:{port}{path}")
            assert page.locator("h1").first.is_visible()
            right = page.locator("body").bounding_box()
            assert right["width"] <= size["width"], path
            if scripts:
                assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], path
        assert page.complaints == []
        if size == PHONE and scripts:
            page.goto(f"http://127.0.0.1:{port}/")
            picture(page, "coordinator-phone")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site whose cleaner doubts every second scan."""
    scans = tmp_path / "scans"
    for number in range(3):
        write_still(scans / f"{number}.dcm", Tissue(70 + number, "linear"))
    write_still(scans / "s.dcm", Tissue(80, "sector"))
    (scans / "torn.dcm").write_bytes(b"\0" * 128 + b"DICMtorn")
    public = tmp_path / "coordinator.pem"
    public.write_text(keys.public_pem(keys.new_signing_key()))
    settings = SiteSettings(
        name="st-olav",
        server="https://fl.example.org:8443",
        sources=(scans,),
        image_size=64,
        disk_floor_gb=0,
        clean=CleanSettings(smallest_region=0.36),
    )
    made = create(tmp_path / "site", settings, None, public)
    inventory.take_in(made)
    return made


def until(page: Any, expression: str, seconds: float = 30.0) -> None:
    """Wait for a condition of the page; asked from outside, since its own policy lets no text be run as a script."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, page.text_content("main") + str(
            page.evaluate("[...document.images].map(i => [i.src, i.naturalWidth])")
        )
        time.sleep(0.1)


def test_a_person_pauses_and_decides_on_the_quarantine(chromium: Any, site: Site) -> None:
    held = [h for h in quarantine.waiting(site, quarantine.Intake().refresh(site.corpus)) if h.index >= 0]
    assert held, "nothing was kept back to decide on"
    progress = {"step": 117, "steps": 200, "loss": 0.3871, "rate": 46.2}
    training = {"state": "training", "online": True, "campaign": "breast-consortium", "round": 12, "progress": progress}
    write_status(site, {**training, "time": time.time()})
    with site.served_alone(), serving(site_page(site), "127.0.0.1", 0) as port:
        page = opened(chromium, DESK)
        page.goto(f"http://127.0.0.1:{port}/")
        page.fill("#token", (site.root / "keys" / "page.token").read_text().strip())
        page.click("main >> text=Open")
        picture(page, "site")
        page.click("text=Pause")
        page.wait_for_selector("text=Resume")
        assert site_policy.paused(site)
        page.click("button:has-text('Resume')")
        page.wait_for_selector("button:has-text('Pause')")
        page.click("nav >> text=Quarantine")
        page.goto(f"http://127.0.0.1:{port}/quarantine/{held[0].id}")
        until(page, "document.images.length == 3 && [...document.images].every(i => i.naturalWidth > 50)")
        picture(page, "quarantine")
        page.click("button:has-text('Release')")
        page.wait_for_load_state("networkidle")
        page.click("nav >> text=Audit log")
        assert "quarantine.released" in page.text_content("main")
        page.set_viewport_size(PHONE)
        for path in ("/", "/quarantine", f"/quarantine/{held[0].id}", "/outbox", "/audit"):
            page.goto(f"http://127.0.0.1:{port}{path}")
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path
        page.goto(f"http://127.0.0.1:{port}/")
        picture(page, "site-phone")
        assert page.complaints == []
    assert quarantine.decisions(site)[held[0].id]["decision"] == "released"


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_kept_frames_are_shown_without_scripts_before_changed_and_after(
    chromium: Any, site: Site, size: dict[str, int]
) -> None:
    with serving(site_page(site), "127.0.0.1", 0) as port:
        page = opened(chromium, size, scripts=False)
        page.goto(f"http://127.0.0.1:{port}/kept")
        page.fill("#token", (site.root / "keys" / "page.token").read_text().strip())
        page.click("main >> text=Open")
        page.wait_for_load_state("networkidle")
        shown = page.locator(".album img").count()
        assert shown == sum(1 for _ in CorpusView().refresh(site.corpus).slice(0, 24)) > 0
        picture(page, "kept" if size == DESK else "kept-phone")
        page.locator(".album a").first.click()
        page.wait_for_load_state("networkidle")
        boxes = [box.bounding_box() for box in page.locator(".developed img").all()]
        assert len(boxes) == 4 and all(50 < box["width"] < size["width"] and box["height"] > 50 for box in boxes)
        assert page.locator("body").bounding_box()["width"] <= size["width"]
        picture(page, "kept-frame" if size == DESK else "kept-frame-phone")
        assert page.complaints == []


def drag(page: Any, canvas: dict[str, float], start: tuple[float, float], end: tuple[float, float]) -> None:
    """Press, move and let go over the picture; places are shares of its sides."""
    spots = [(canvas["x"] + canvas["width"] * x, canvas["y"] + canvas["height"] * y) for x, y in (start, end)]
    page.mouse.move(*spots[0])
    page.mouse.down()
    page.mouse.move(*spots[1], steps=5)
    page.mouse.up()


def test_a_person_labels_pictures_with_mouse_and_keys_and_goes_on_later(chromium: Any, tmp_path: Path) -> None:
    scans, file = tmp_path / "scans", tmp_path / "scans.truth.json"
    for number in range(2):
        write_still(scans / f"{number}.dcm", Tissue(70 + number, "sector"))
    with labelling(scans, file) as opened_page:
        page = opened(chromium, DESK)
        page.goto(opened_page.address)
        page.fill("#token", opened_page.token)
        page.click("main >> text=Open")
        assert "Picture 1 of 2" in page.text_content("main")
        until(page, "document.querySelector('canvas').width > 300")
        page.keyboard.press("4")  # caliper
        canvas = page.locator("canvas").bounding_box()
        drag(page, canvas, (0.3, 0.3), (0.4, 0.4))
        page.keyboard.press("s")  # strokes
        page.keyboard.press("5")  # arrow
        drag(page, canvas, (0.5, 0.6), (0.7, 0.8))
        drag(page, canvas, (0.2, 0.8), (0.2, 0.9))
        page.keyboard.press("z")
        until(page, "document.getElementById('state').textContent === 'open, saved'")
        picture(page, "annotate")
        page.keyboard.press("Enter")
        page.wait_for_url("**/pictures/1")
        assert page.complaints == []
    first = Truth.load(file).pictures[0]
    assert first.done and [shape.label for shape in first.shapes] == ["caliper", "arrow"]
    x0, y0, x1, y1 = first.shapes[0].box or (0, 0, 0, 0)
    assert abs(x0 - 0.3 * first.width) < 3 and abs(y1 - 0.4 * first.height) < 3 and x1 > x0 and y1 > y0
    with labelling(scans, file) as again:
        page = opened(chromium, PHONE)
        page.goto(again.address)
        page.fill("#token", again.token)
        page.click("main >> text=Open")
        assert "Picture 2 of 2" in page.text_content("main")
        until(page, "document.querySelector('canvas').width > 300")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        picture(page, "annotate-phone")
        assert page.complaints == []
