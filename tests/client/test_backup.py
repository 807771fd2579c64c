"""A site's backup restores into an empty folder, whole or not at all."""

from __future__ import annotations

import json
import stat
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from tests.client.test_cli import call, staged
from usfmae.client import backup, leave, outbox, site_policy
from usfmae.client.review import quarantine
from usfmae.client.site import Site
from usfmae.core import audit
from usfmae.core.corpus.shard import FOLDER
from usfmae.core.errors import PolicyError, SourceError, UsageError


def test_a_restored_site_has_its_keys_decisions_and_outbox(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site(release="approve")
    id_ = staged(site)
    outbox.decide(site, id_, True, by="Dr. Berg")
    site_policy.pause(site)
    with quarantine.deciding(site, write=True) as db:
        db.execute("INSERT INTO decisions VALUES ('e', 'dropped', 'text-left', 'Dr. Berg', 1.0)")
    file = tmp_path / "b.tar"
    assert call("backup", site.root, "--out", file).exception is None
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    assert call("restore", file, tmp_path / "again").exception is None
    again = Site.open(tmp_path / "again")
    assert again.fingerprint == site.fingerprint and again.secret == site.secret
    assert [entry["state"] for entry in outbox.entries(again)] == ["released"]
    assert quarantine.decision_on(again, "e")["by"] == "Dr. Berg"  # type: ignore[index]
    assert site_policy.paused(again)
    assert [entry["event"] for entry in audit.entries(again.audit_log)][-1] == "restored"
    assert audit.verify(again.audit_log) >= 4
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (again.root / "keys").iterdir())


def test_the_corpus_comes_where_it_is_asked_for(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site()
    for name, options in {"small": (), "whole": ("--corpus",)}.items():
        assert call("backup", site.root, "--out", tmp_path / f"{name}.tar", *options).exception is None
        backup.restore(tmp_path / f"{name}.tar", tmp_path / name)
    assert not (tmp_path / "small" / "corpus" / FOLDER).exists()
    assert {f.name for f in (tmp_path / "whole" / "corpus" / FOLDER).iterdir()} == {
        f.name for f in (site.corpus / FOLDER).iterdir()
    }


def test_nothing_comes_to_be_from_a_damaged_or_foreign_file(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site()
    file = tmp_path / "b.tar"
    backup.write(site, file)
    whole = file.read_bytes()
    at = whole.index(b"poll: 0.1")
    file.write_bytes(whole[:at] + b"poll: 0.2" + whole[at + 9 :])
    with pytest.raises(PolicyError, match=r"site.yaml"):
        backup.restore(file, tmp_path / "n")
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError):
        backup.restore(file, tmp_path / "n")
    with tarfile.open(file, "w") as tar:
        member = tarfile.TarInfo("../out")
        member.size = 1
        tar.addfile(member, BytesIO(b"x"))
    with pytest.raises(PolicyError, match="out of the folder"):
        backup.restore(file, tmp_path / "n")
    assert not (tmp_path / "n").exists() and not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_not_written_over(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site()
    backup.write(site, tmp_path / "b.tar")
    with pytest.raises(UsageError, match="not empty"):
        backup.restore(tmp_path / "b.tar", site.root)
    with pytest.raises(UsageError, match="exists already"):
        backup.write(site, tmp_path / "b.tar")


def test_a_backup_beside_a_writing_agent_holds_a_sound_log(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site()
    with site.audit_log.open("a") as log:
        log.write('{"torn')  # a line that the agent is writing
    backup.write(site, tmp_path / "b.tar")
    assert backup.restore(tmp_path / "b.tar", tmp_path / "n")["audit_entries"] == 1


def test_doctor_says_that_the_coordinators_key_is_missing(make_site: Callable[..., Site]) -> None:
    site = make_site()
    (site.root / "coordinator.pem").unlink()
    finding = json.loads(call("doctor", site.root, "--json").stdout)["checks"][0]
    assert finding["status"] == "FAIL" and "coordinator.pem" in finding["detail"] and "restore" in finding["fix"]


def test_who_leaves_sends_nothing_more_and_can_still_show_what_left(make_site: Callable[..., Site]) -> None:
    site = make_site(release="approve")
    id_ = staged(site)
    done = json.loads(call("leave", site.root, "--delete", "--yes", "--json").stdout)
    assert done["kept_back"] == [id_] and done["deleted_bytes"] > 0
    assert not any((site.root / name).exists() for name in ("keys", "corpus", "campaigns"))
    assert (site.root / "outbox" / id_ / "sheet.txt").exists()
    assert not list(site.root.rglob(outbox.UPDATE))
    assert [entry["event"] for entry in audit.entries(site.audit_log)][-1] == "left"
    audit.verify(site.audit_log)
    refused = call("run", site.root, "--until-idle", "1").exception
    assert isinstance(refused, PolicyError) and "left its federation" in str(refused)


def test_a_site_that_is_served_does_not_leave(make_site: Callable[..., Site]) -> None:
    site = make_site()
    with site.served_alone():
        assert isinstance(call("leave", site.root, "--yes").exception, UsageError)
    leave.check_member(site)
