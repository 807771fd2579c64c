"""The coordinator's page: what it shows, what it takes a token for, what it never shows, how fast it is."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from usfmae.core import keys, metrics
from usfmae.core.config import validated
from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.config.sources import PageSettings
from usfmae.core.errors import UsageError
from usfmae.core.federated.enrolment import Enrolment, proved
from usfmae.core.web.access import WRONG_TOKEN_SECONDS
from usfmae.server.cli import group
from usfmae.server.dashboard.app import application
from usfmae.server.dashboard.figures import figures
from usfmae.server.dashboard.view import Closing, History, overview
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger, Verdict
from usfmae.server.status import status


def enrolment(name: str) -> Enrolment:
    return proved(name, 100, keys.new_node_key(), keys.new_signing_key())


def filled(root: Path, sites: int, rounds: int) -> Layout:
    """A ledger with this many sites and rounds, the last one open."""
    home = Layout(root)
    home.keys.mkdir(parents=True)
    ledger = Ledger(home.ledger, create=True)
    ledger.set_fact("campaign", "trial-1")
    for number in range(sites):
        ledger.add_site(enrolment(f"site-{number:02d}"))
    with ledger._write() as db:
        for number in range(1, rounds + 1):
            state = "open" if number == rounds else "committed"
            db.execute(
                "INSERT INTO rounds VALUES (?, ?, ?, 0, 5, ?, ?, ?, ?)",
                (number, state, "a" * 64, number * 100.0, number * 100 + 60.0, "b" * 64, json.dumps(_summary())),
            )
            for site in ledger.sites():
                verdict = Verdict(number, site, "admitted", bytes=1000, images=10, received=number * 100 + 30.0)
                row = vars(verdict)
                db.execute(
                    f"INSERT INTO replies ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values())
                )
    ledger.close()
    return home


def _summary() -> dict[str, object]:
    panel = {"organs": {"breast": {"loss": 0.33, "probe": None}}, "seed": {"breast": 0.30}}
    return {"loss_before": 0.5, "loss_after": 0.4, "panel": panel}


@pytest.fixture
def home(tmp_path: Path) -> Layout:
    return filled(tmp_path / "coordinator", 2, 3)


@pytest.fixture
def page(home: Layout) -> TestClient:
    return TestClient(application(home), base_url="http://127.0.0.1")


def log_in(page: TestClient, home: Layout) -> str:
    token = (home.keys / "page.token").read_text().strip()
    answer = page.post("/login", data={"token": token, "next": "/sites"})
    return re.search(r'name="form_token" value="([\w-]+)"', answer.text)[1]  # type: ignore[index]


def test_the_audit_log_needs_a_login_and_is_searched(page: TestClient, home: Layout) -> None:
    for path in ("/audit", "/audit.csv", "/audit.json"):
        assert "/login" in page.get(path, follow_redirects=False).headers["location"]
    assert 'href="/audit"' not in page.get("/").text
    log_in(page, home)
    assert 'href="/audit"' in page.get("/").text
    assert "page.login" in page.get("/audit?event=page").text
    assert json.loads(page.get("/audit.json?event=site-add").text) == []


@pytest.mark.parametrize("path", ["/", "/sites", "/rounds", "/rounds/2", "/lineage", "/login"])
def test_every_page_answers_and_fetches_nothing_from_elsewhere(page: TestClient, path: str) -> None:
    answer = page.get(path)
    assert answer.status_code == 200
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", answer.text)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/", "/sites", "/rounds", "/rounds/2", "/lineage"])
def test_an_unforeseen_exception_costs_its_request(home: Layout, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    page = TestClient(application(home), base_url="http://127.0.0.1", raise_server_exceptions=False)

    def unforeseen(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nobody thought of this")

    with monkeypatch.context() as patched:
        patched.setattr("usfmae.server.dashboard.view.reading", unforeseen)
        patched.setattr("usfmae.server.dashboard.view.overview", unforeseen)
        answer = page.get(path)
    assert answer.status_code == 500 and "nobody thought" not in answer.text
    assert page.get(path).status_code == 200


def test_overview_shows_sites_verdicts_and_forgetting(page: TestClient) -> None:
    text = page.get("/").text
    assert "site-00" in text and "Round 3" in text and "2 of 2 sites have answered" in text
    assert "Forgetting, by organ" in text and "breast" in text


def test_changing_needs_the_token(page: TestClient, home: Layout) -> None:
    refused = page.post("/sites/revoke", data={"name": "site-00", "typed": "site-00", "form_token": "x"})
    assert refused.status_code == 403
    assert Ledger(home.ledger).sites() and all(s.state == "active" for s in Ledger(home.ledger).sites().values())
    started = time.monotonic()
    assert page.post("/login", data={"token": "guess", "next": "/"}).status_code == 403
    assert time.monotonic() - started >= WRONG_TOKEN_SECONDS  # a guess costs time
    assert (home.keys / "page.token").stat().st_mode & 0o077 == 0


def test_enrol_and_revoke_with_the_token(page: TestClient, home: Layout) -> None:
    mark = log_in(page, home)
    text = json.dumps(dataclasses.asdict(enrolment("kiel")))
    answer = page.post("/sites/enrol", data={"form_token": mark, "text": text})
    assert "kiel is enrolled" in answer.text
    again = page.post("/sites/enrol", data={"form_token": mark, "text": text})
    assert again.status_code == 400 and "enrolled already" in again.text
    assert page.post("/sites/revoke", data={"form_token": mark, "name": "kiel", "typed": "kie"}).status_code == 400
    assert (
        "kiel is revoked" in page.post("/sites/revoke", data={"form_token": mark, "name": "kiel", "typed": "kiel"}).text
    )
    states = {s.name: s.state for s in Ledger(home.ledger).sites().values()}
    assert states["kiel"] == "revoked" and states["site-00"] == "active"


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "../../etc/passwd", "a b", "x" * 64, ""])
def test_a_hostile_name_is_refused_and_escaped(page: TestClient, home: Layout, name: str) -> None:
    mark = log_in(page, home)
    hostile = dataclasses.asdict(enrolment("fine")) | {"name": name}
    answer = page.post("/sites/enrol", data={"form_token": mark, "text": json.dumps(hostile)})
    assert answer.status_code == 400 and "<script>alert" not in answer.text
    assert not (home.root / "etc").exists() and len(Ledger(home.ledger).sites()) == 2


def test_a_name_from_an_old_ledger_is_escaped(page: TestClient, home: Layout) -> None:
    with Ledger(home.ledger)._write() as db:
        db.execute("UPDATE sites SET name = '<img src=x onerror=alert(1)>' WHERE name = 'site-00'")
        db.execute("UPDATE replies SET verdict = 'norm', detail = '<b>bold</b>' WHERE round = 3")
    for path in ("/", "/sites", "/rounds/3"):
        text = page.get(path).text
        assert "<img src=x" not in text and "<b>bold" not in text and "&lt;img" in text


@pytest.mark.parametrize("text", ["", "not json", "[]", "{}", '{"name": "a"}', "{" * 9000])
def test_rubbish_in_the_enrolment_form_is_one_clear_line(page: TestClient, home: Layout, text: str) -> None:
    mark = log_in(page, home)
    answer = page.post("/sites/enrol", data={"form_token": mark, "text": text})
    assert answer.status_code == 400 and "not an enrol.json" in answer.text


def test_only_known_hosts_own_forms_and_small_bodies(page: TestClient, home: Layout) -> None:
    assert page.get("/", headers={"Host": "evil.example"}).status_code == 400  # DNS rebinding
    mark = log_in(page, home)
    form = {"form_token": mark, "name": "site-00", "typed": "site-00"}
    assert page.post("/sites/revoke", data=form, headers={"Origin": "https://evil.example"}).status_code == 403
    assert page.post("/sites/revoke", data=form, headers={"Origin": "null"}).status_code == 403
    assert page.post("/sites/enrol", data={"form_token": mark, "text": "x" * 70_000}).status_code == 413
    named = TestClient(application(home, PageSettings(names=("fl.example.org",))), base_url="https://fl.example.org")
    assert named.get("/").status_code == 200


def test_download_gives_a_rounds_encoder_and_no_other_file(page: TestClient, home: Layout) -> None:
    home.checkpoints.mkdir()
    home.checkpoint(2).write_bytes(b"weights")
    stranger = page.get("/checkpoints/2", follow_redirects=False)
    assert stranger.status_code == 303 and stranger.headers["location"].startswith("http://127.0.0.1/login?next=")
    token = (home.keys / "page.token").read_text().strip()
    answer = page.post("/login", data={"token": token, "next": "http://127.0.0.1/checkpoints/2"})
    assert answer.content == b"weights"
    for path in ("/checkpoints/1", "/checkpoints/../ledger.sqlite", "/checkpoints/%2e%2e%2fledger.sqlite", "/keys/ca"):
        assert page.get(path).status_code == 404


def test_login_leads_back_to_this_page_only(page: TestClient, home: Layout) -> None:
    token = (home.keys / "page.token").read_text().strip()
    for wanted in ("//evil.example", "https://evil.example", "/\\evil"):
        answer = page.post("/login", data={"token": token, "next": wanted}, follow_redirects=False)
        assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "secure" not in cookie
    proxied = page.post("/login", data={"token": token}, headers={"X-Forwarded-Proto": "https"}, follow_redirects=False)
    assert proxied.headers["set-cookie"].endswith("; Secure")


def test_figures_name_only_known_metrics_and_follow_new_rounds(home: Layout) -> None:
    history = History()
    values = figures(home, history)
    assert set(values) <= set(metrics.ALL)
    assert values["usfmae_server_round"] == 2 and values["usfmae_server_verdicts_total"] == {"admitted": 6}
    assert values["usfmae_server_panel_forgetting_ratio"] == {"breast": pytest.approx(0.1)}
    with Ledger(home.ledger)._write() as db:
        db.execute("UPDATE rounds SET state = 'committed' WHERE number = 3")
        db.execute("INSERT INTO rounds VALUES (4, 'open', '', 0, 5, 400.0, NULL, NULL, NULL)")
    again = figures(home, history)
    assert again["usfmae_server_round"] == 3 and again["usfmae_server_verdicts_total"] == {"admitted": 6}
    assert again["usfmae_server_bytes_received_total"] == 6000
    assert again == figures(home, History()) | {"usfmae_server_disk_free_bytes": again["usfmae_server_disk_free_bytes"]}


def test_a_committed_round_is_read_once(home: Layout) -> None:
    """What 500 rounds cost is what is new since the last look."""
    history = History()
    before = overview(home, history)
    with Ledger(home.ledger)._write() as db:
        db.execute("UPDATE rounds SET summary = '{}' WHERE number = 1")
        db.execute("UPDATE rounds SET steps = 7 WHERE number = 3")  # the open one
    after = overview(home, history)
    assert [r["summary"] for r in after.committed] == [r["summary"] for r in before.committed]
    assert after.open_round and after.open_round["steps"] == 7


def test_the_open_round_tells_who_is_where_trouble_first(home: Layout, page: TestClient) -> None:
    ledger = Ledger(home.ledger)
    for name in ("working", "silent"):
        ledger.add_site(enrolment(name))
    keys = {site.name: key for key, site in ledger.sites().items()}
    ledger.saw([keys["working"]])
    with ledger._write() as db:
        db.execute("UPDATE replies SET verdict = 'norm' WHERE round = 3 AND site = ?", (keys["site-00"],))
    groups = overview(home, History()).open_sites()
    assert {group: [s["name"] for s in members] for group, members in groups.items()} == {
        "not admitted": ["site-00"], "away": ["silent"], "declined": [], "connected": ["working"],
        "admitted": ["site-01"],
    }  # fmt: skip
    assert list(groups) == ["not admitted", "away", "declined", "connected", "admitted"]
    assert "site-00: norm" in page.get("/").text


def test_before_the_first_round_the_page_says_that_the_panel_is_measured(home: Layout) -> None:
    seen = dataclasses.replace(overview(home, History()), rounds=[], address="127.0.0.1:1")
    assert seen.between.startswith("No round is open")
    settings = validated(CoordinatorSettings, {"name": "trial", "continual": {"panel": "panel"}}, "test")
    assert dataclasses.replace(seen, settings=settings).between.startswith("The panel is being measured")


def test_where_every_site_has_answered_and_too_few_were_admitted_it_says_what_to_do() -> None:
    text = Closing([], [], quorum=1, admitted=0, deadline=None).text
    assert text.startswith("Waits for 1 more admitted update (quorum 1): every site has answered") and "enrol" in text


def test_page_and_status_say_who_is_missing_and_when_the_round_closes(home: Layout, page: TestClient) -> None:
    home.settings_file.write_text("name: trial\nrounds:\n  quorum: 3\n  patience: 7200\n")
    ledger = Ledger(home.ledger)
    ledger.add_site(enrolment("kiel"))
    ledger.add_site(enrolment("ulm"))
    assert "Waits for 1 more admitted update (quorum 3): kiel, ulm." in page.get("/").text
    with ledger._write() as db:
        db.execute("UPDATE rounds SET opened = ? WHERE number = 3", (time.time() - 3600,))
    home.settings_file.write_text("name: trial\nrounds:\n  quorum: 2\n  grace: 7200\n  patience: 7200\n")
    shown = status(home)
    assert shown["waiting_for"] == ["kiel", "ulm"] and shown["closes_at"] == pytest.approx(time.time() + 3600, abs=5)
    assert "Closes when kiel, ulm answer or in 60 min" in page.get("/").text.replace("1.0 h", "60 min")
    done = CliRunner().invoke(group, ["status", str(home.root)])
    assert "kiel" in done.output and "no answer yet" in done.output and "waits       The quorum of 2" in done.output


def test_revoking_asks_for_the_name_and_a_script_says_yes(home: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner()
    assert isinstance(run.invoke(group, ["site", "revoke", str(home.root), "site-00"]).exception, UsageError)
    monkeypatch.setattr("usfmae.server.cli.sites._asks", lambda: True)
    wrong = run.invoke(group, ["site", "revoke", str(home.root), "site-00"], input="site-01\n")
    assert isinstance(wrong.exception, UsageError) and "cannot be undone" in wrong.output
    assert all(site.state == "active" for site in Ledger(home.ledger).sites().values())
    assert run.invoke(group, ["site", "revoke", str(home.root), "site-00"], input="site-00\n").exit_code == 0
    assert run.invoke(group, ["site", "revoke", str(home.root), "site-01", "--yes"]).exit_code == 0
    assert all(site.state == "revoked" for site in Ledger(home.ledger).sites().values())


def test_a_decline_is_no_fault(home: Layout, page: TestClient) -> None:
    with Ledger(home.ledger)._write() as db:
        db.execute("UPDATE replies SET verdict = 'declined', detail = 'paused' WHERE round = 3")
    shown = overview(home, History())
    assert shown.not_admitted == [] and [one["detail"] for one in shown.declined] == ["paused", "paused"]
    text = page.get("/").text
    assert "2 declined" in text and "site-00: paused" in text and 'class="pill bad">declined' not in text


def test_the_matrix_has_a_cell_for_each_site_and_round(home: Layout, page: TestClient) -> None:
    ledger = Ledger(home.ledger)
    ledger.add_site(enrolment("late"))
    numbers, lines = overview(home, History()).matrix()
    assert numbers == [1, 2, 3] and [line["name"] for line in lines] == ["late", "site-00", "site-01"]
    assert lines[0]["cells"] == [None] * 3 and all(cell["verdict"] == "admitted" for cell in lines[1]["cells"])
    assert 'title="late, round 2: no reply"' in page.get("/").text


def test_a_round_that_came_to_nothing_is_not_shown_as_committed(home: Layout, page: TestClient) -> None:
    ledger = Ledger(home.ledger)
    ledger.commit_round(3, "a" * 64, {"void": "quorum refused"}, [], steps=0)
    ledger.close()
    for path in ("/rounds", "/rounds/3"):
        assert "void: quorum refused" in page.get(path).text


def test_lineage_shows_releases_and_where_a_campaign_began_anew(home: Layout, page: TestClient) -> None:
    with Ledger(home.ledger)._write() as db:
        for number, base, result in ((1, "0", "1"), (2, "1", "2"), (3, "1", "3")):
            row = (base * 64, result * 64, number)
            db.execute("UPDATE rounds SET state = 'committed', base = ?, result = ? WHERE number = ?", row)
    _release(home.root / "releases" / "spring", 2)
    (home.root / "releases" / "notes").mkdir()
    text = page.get("/lineage").text
    assert "from round 1" in text and text.count("from round") == 1
    assert "release spring" in text and "notes" not in text
    log_in(page, home)
    assert page.get("/releases/spring/weights.safetensors").content == b"weights"
    for path in ("/releases/spring/secret.txt", "/releases/notes/x", "/releases/..%2fkeys/page.token"):
        assert page.get(path).status_code == 404, path


def _release(folder: Path, number: int) -> None:
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"weights")
    (folder / "secret.txt").write_text("not listed")
    facts = {"release": {"round": number, "content": "2" * 64}, "files": {"weights.safetensors": ""}}
    (folder / "manifest.json").write_text(json.dumps(facts))


def test_an_absent_ledger_is_said(tmp_path: Path) -> None:
    home = Layout(tmp_path / "new")
    home.keys.mkdir(parents=True)
    answer = TestClient(application(home), base_url="http://127.0.0.1").get("/")
    assert answer.status_code == 503 and "usfmae-server init" in answer.text
