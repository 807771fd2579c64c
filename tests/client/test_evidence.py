"""The folder for a security review: every figure is what its file says, and no secret or picture is in it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from usfmae.client import evidence
from usfmae.client.cli.records import evidence as command
from usfmae.client.site import Site, create, write_json
from usfmae.core import keys
from usfmae.core.config.site import SiteSettings
from usfmae.core.errors import PolicyError, UsageError


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """With two updates that left, one that waits, scans in the ledger and a proxy with a password."""
    public = tmp_path / "coordinator.pem"
    public.write_text(keys.public_pem(keys.new_signing_key()))
    settings = SiteSettings(
        name="st-olav",
        server="https://fl.example:8443",
        release="approve",
        proxy="http://user:hunter2@proxy.example:3128",
        sources=(tmp_path / "Doe^Jane",),
    )
    made = create(tmp_path / "site", settings, None, public)
    made.close_to_others()
    for number in (1, 2, 3):
        place = made.root / "outbox" / f"r0000{number}-abc"
        entry = {"id": place.name, "campaign": "c", "round": number, "bytes": 1000 * number, "norm": 0.5,
                 "recipient": settings.server, "created": float(number), "release": "approve"}  # fmt: skip
        write_json(place / "entry.json", entry)
        if number < 3:
            write_json(place / "decision.json", {"approved": True, "by": "dr-k", "time": 1.0})
            write_json(place / "sent.json", {"time": 2.0})
        made.note("outbox.staged", id=place.name)
    scan = {"outcome": "read", "reason": "", "frames": 4, "duplicates": 1, "kept": 1, "notes": []}
    (made.corpus / "ledger" / "tasks").mkdir(parents=True)
    task = {"scans": [{"id": "a" * 64, **scan, "quarantined": {"text-left": [2, 3]}}]}
    (made.corpus / "ledger" / "tasks" / "0001-000000.json").write_text(json.dumps(task))
    return made


def test_one_command_makes_a_folder_whose_figures_are_those_of_its_files(site: Site, tmp_path: Path) -> None:
    began = time.monotonic()
    done = CliRunner().invoke(command, [str(site.root), "--out", str(tmp_path / "review"), "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.output)
    assert (printed["audit"], printed["updates_left"]) == ("sound", 2) and printed["figures"] > 60
    assert time.monotonic() - began < 60
    again = CliRunner().invoke(command, [str(site.root), "--out", str(tmp_path / "review"), "--check", "--json"])
    assert json.loads(again.output)["figures"] == printed["figures"]
    left = json.loads((tmp_path / "review" / "left.json").read_text())
    assert (left["count"], left["bytes"], left["waiting"]) == (2, 3000, 1)
    assert left["updates"][0]["approved_by"] == "dr-k"
    intake = json.loads((tmp_path / "review" / "intake.json").read_text())
    assert (intake["kept"], intake["quarantined"], intake["open_quarantine"]) == (1, 2, 2)
    page = (tmp_path / "review" / "index.html").read_text()
    assert '<a href="left.json#/bytes">3000</a>' in page and "EDPB Opinion 28/2024" in page
    assert "SATRE 3.3.07" in page and "FDA" in page


@pytest.mark.parametrize(
    ("file", "key"),
    [("left.json", "bytes"), ("intake.json", "kept"), ("audit.json", "entries"), ("audit.json", "head")],
)
def test_a_figure_that_differs_from_its_file_is_found(site: Site, tmp_path: Path, file: str, key: str) -> None:
    evidence.write(site, tmp_path / "review")
    values = json.loads((tmp_path / "review" / file).read_text())
    write_json(tmp_path / "review" / file, {**values, key: 7})
    with pytest.raises(PolicyError, match=f"is not what {file}#/{key} says"):
        evidence.check(tmp_path / "review")


@pytest.mark.parametrize("name", ["dpia.md", "data-permit.md"])
def test_a_figure_that_was_changed_in_an_answer_is_found(site: Site, tmp_path: Path, name: str) -> None:
    evidence.write(site, tmp_path / "review")
    text = (tmp_path / "review" / name).read_text()
    (tmp_path / "review" / name).write_text(text.replace("[1](intake.json#/kept)", "[9](intake.json#/kept)"))
    with pytest.raises(PolicyError, match=f"'9' in {name}"):
        evidence.check(tmp_path / "review")


def test_no_secret_and_no_path_of_a_scan_is_in_it(site: Site, tmp_path: Path) -> None:
    evidence.write(site, tmp_path / "review")
    everything = b"".join(path.read_bytes() for path in (tmp_path / "review").iterdir())
    for word in (b"hunter2", b"Doe", b"Jane", site.secret, site.secret.hex().encode(), b"PRIVATE KEY"):
        assert word not in everything
    assert b"http://proxy.example:3128" in everything


def test_a_broken_audit_log_is_said_and_the_folder_is_made(site: Site, tmp_path: Path) -> None:
    log = site.audit_log
    log.write_text(log.read_text().replace("r00001", "r00009"))
    assert "sound" not in evidence.write(site, tmp_path / "review")["audit"]
    assert json.loads((tmp_path / "review" / "audit.json").read_text())["sound"] is False


def test_evidence_is_never_changed(site: Site, tmp_path: Path) -> None:
    evidence.write(site, tmp_path / "review")
    with pytest.raises(UsageError, match="exists already"):
        evidence.write(site, tmp_path / "review")


def test_the_bill_of_materials_names_what_is_installed(site: Site, tmp_path: Path) -> None:
    from importlib.metadata import version

    versions = {one["name"].lower(): one["version"] for one in evidence.bill_of_materials()["components"]}
    assert versions["pydicom"] == version("pydicom") and versions["torch"] == version("torch")
