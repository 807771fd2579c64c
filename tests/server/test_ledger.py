"""The ledger: keys are enrolled once and never after a revocation; what is committed stays."""

import dataclasses
import sqlite3

import pytest

from usfmae.core import keys
from usfmae.core.errors import ConfigError, PolicyError
from usfmae.core.federated.enrolment import Enrolment
from usfmae.server.ledger import Ledger, Verdict


def enrolment(name="clinic"):
    return Enrolment(name, keys.public_pem(keys.new_node_key()), keys.public_pem(keys.new_signing_key()), 100)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.sqlite", create=True)


def test_a_name_and_a_key_are_enrolled_once(ledger):
    first = enrolment()
    ledger.add_site(first)
    with pytest.raises(PolicyError, match="enrolled already"):
        ledger.add_site(first)
    with pytest.raises(PolicyError, match="name is taken"):
        ledger.add_site(enrolment())


@pytest.mark.parametrize("spelt", [lambda pem: pem.replace("\n", "\r\n"), lambda pem: "note\n" + pem + "\n\n"])
def test_a_key_is_the_same_however_it_is_spelt(ledger, spelt):
    first = enrolment()
    ledger.add_site(first)
    twin = dataclasses.replace(enrolment(), name="twin", node_key=spelt(first.node_key))
    with pytest.raises(PolicyError, match="enrolled already"):
        ledger.add_site(twin)
    with ledger._write() as db:  # as an older version stored it
        db.execute("UPDATE sites SET node_key = ?", (spelt(first.node_key),))
    with pytest.raises(PolicyError, match="enrolled already"):
        ledger.add_site(dataclasses.replace(twin, node_key=first.node_key))


def test_a_revoked_key_never_comes_back_but_its_name_may(ledger):
    first = enrolment()
    ledger.add_site(first)
    ledger.revoke_site("clinic")
    with pytest.raises(PolicyError, match="was revoked"):
        ledger.add_site(first)
    ledger.add_site(enrolment())
    assert sorted(s.state for s in ledger.sites().values()) == ["active", "revoked"]
    with pytest.raises(PolicyError, match="no active site"):
        ledger.revoke_site("nobody")


def test_a_round_is_open_until_it_is_committed_and_reopens_as_it_was(tmp_path, ledger):
    opened = ledger.open_round(1, "base", 0, 5)
    ledger.close()
    again = Ledger(tmp_path / "ledger.sqlite")
    assert again.open_round(1, "base", 0, 5) == opened
    with pytest.raises(PolicyError, match="disagree"):
        again.open_round(1, "another base", 0, 5)
    again.commit_round(1, "result", {"sites": 1}, [Verdict(1, "s", "admitted", norm=2.0, scale=0.5, against=True)])
    assert again.last_round().result == "result"
    assert again.lengths(2) == [(1, 1.0)] and again.strikes(2, 4) == {"s": 1}


def test_a_ledger_of_an_older_version_gets_the_columns_that_came_later(tmp_path, ledger):
    ledger.record(Verdict(1, "s", "admitted", norm=2.0))
    ledger.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        for table, column in (("sites", "confirmed"), ("replies", "scale"), ("replies", "against")):
            db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    again = Ledger(tmp_path / "ledger.sqlite")
    assert again.lengths(2) == [(1, 2.0)] and again.verdicts(1)["s"].scale is None


def test_a_replay_is_known_by_its_content_in_another_round_only(ledger):
    ledger.record(Verdict(1, "s", "admitted", content="c"))
    assert ledger.seen_content("s", "c", 2) and not ledger.seen_content("s", "c", 1)
    assert not ledger.seen_content("other", "c", 2)


def test_a_directory_without_a_federation_is_told_so(tmp_path):
    with pytest.raises(ConfigError, match="init"):
        Ledger(tmp_path / "none.sqlite")


def test_the_sites_are_read_again_only_after_a_change_whoever_made_it(ledger):
    read = []
    ledger._db.set_trace_callback(lambda statement: read.append(statement) if "FROM sites ORDER" in statement else None)
    assert ledger.sites() == {} and ledger.sites() == {} and len(read) == 1
    ledger.add_site(enrolment())
    assert [site.name for site in ledger.sites().values()] == ["clinic"] and len(read) == 2
    other = Ledger(ledger.path)  # as the commands of a coordinator beside a running aggregator
    other.add_site(enrolment("second"))
    assert len(ledger.sites()) == 2 and len(read) == 3
    other.revoke_site("second")
    assert {site.name: site.state for site in ledger.sites().values()} == {"clinic": "active", "second": "revoked"}
    ledger.sites().clear()
    assert len(ledger.sites()) == 2 and len(read) == 4
