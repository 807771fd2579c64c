"""A hospital that comes, one that goes, and one whose clock is wrong, in the middle of a round."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import tables
from tests.e2e.federation import Federation

pytestmark = pytest.mark.faults

ROUNDS = 2
LATE = "hospital-3"  # not enrolled in the template


class Cases:
    """A federation of three hospitals, the third not enrolled yet, and what its undisturbed runs end with."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.template = Federation(root / "template", 3, enrolled=2, **{"rounds.steps": 12, "rounds.quorum": 2})
        self.hashes: dict[int, str] = {}

    def copy(self, name: str) -> Federation:
        return self.template.copy(self.root / name)

    def calm(self, sites: int) -> str:
        """The hash with so many hospitals from the first moment on."""
        if sites not in self.hashes:
            federation = self.copy(f"calm-{sites}")
            if sites == 3:
                command(federation, "site", "add", str(federation.sites[LATE].root / "enrol.json"))
            federation.start_server(ROUNDS)
            for name in federation.names[:sites]:
                federation.start_site(name)
            self.hashes[sites] = federation.wait_rounds(ROUNDS)["hash"]
            federation.stop()
        return self.hashes[sites]


def command(federation: Federation, *words: str) -> None:
    """`usfmae-server site add|revoke DIR ...`, as a coordinator types it beside the running aggregator."""
    line = [sys.executable, "-m", "usfmae.server", *words[:2], str(federation.home.root), *words[2:]]
    subprocess.run(line, check=True, capture_output=True)


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Cases:
    return Cases(tmp_path_factory.mktemp("sites"))


@pytest.fixture
def running(cases, request) -> Iterator[Federation]:
    federation = cases.copy(request.node.name)
    yield federation
    federation.stop()


def held_in_training(federation: Federation) -> Path:
    """Wait until a worker is held in round 1's training; the file that holds it."""
    taken = federation.root / "hold" / "training.taken"
    federation.wait("a training", taken.exists)
    return taken


def judge(federation: Federation, what: str, wanted: str, sites: list[str], began: float) -> None:
    federation.wait_rounds(ROUNDS)
    found = tables.fault(federation, "training", what, wanted, range(1, ROUNDS + 1), sites, began)
    assert found == (True, 0, [sites] * ROUNDS)
    federation.verify_logs()


def test_a_site_added_in_the_round_takes_part_in_it(cases, running):
    wanted, began = cases.calm(3), time.monotonic()
    (running.held() / "training").write_text("")
    running.start_server(ROUNDS)
    for name in running.names[:2]:
        running.start_site(name)
    taken = held_in_training(running)
    command(running, "site", "add", str(running.sites[LATE].root / "enrol.json"))
    running.start_site(LATE)
    running.wait("the new site's training", lambda: running.trainings(LATE) == 1)
    taken.unlink()
    judge(running, "a site is added", wanted, running.names, began)
    assert LATE in running.admitted(1)


def test_a_site_revoked_in_the_round_has_no_part_in_it(cases, running):
    """It had trained already and its update was admitted."""
    wanted, began = cases.calm(2), time.monotonic()
    command(running, "site", "add", str(running.sites[LATE].root / "enrol.json"))
    folder = running.held()
    running.start_server(ROUNDS)
    gone = running.start_site(LATE)
    running.wait("its update", lambda: LATE in running.admitted(1))
    (folder / "training").write_text("")
    for name in running.names[:2]:
        running.start_site(name)
    taken = held_in_training(running)
    command(running, "site", "revoke", LATE, "--yes")
    running.running.remove(gone)
    assert gone.process.wait(180) == 6
    assert "revoked" in gone.log.read_text()
    taken.unlink()
    judge(running, "a site is revoked", wanted, running.names[:2], began)
    entries = [e for e in running.audit() if e["event"] == "site-revoke"]
    assert len(entries) == 1


@pytest.mark.parametrize(("offset", "word"), [("-10m", "behind"), ("+10m", "ahead of")])
def test_a_clock_ten_minutes_off_is_said_and_once_it_is_set_the_round_goes_on(cases, running, offset, word):
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("needs libfaketime (Debian: faketime)")
    wanted, began = cases.calm(2), time.monotonic()
    running.start_server(ROUNDS)
    running.start_site("hospital-1")
    running.environment = {"LD_PRELOAD": str(library), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    wrong = running.start_site("hospital-2")
    running.wait("the message", lambda: f"{word} the server's" in wrong.log.read_text())
    said = next(line for line in wrong.log.read_text().splitlines() if word in line)
    assert "set the clock (NTP)" in said and "clock is 10 min" in said
    doctor = [sys.executable, "-m", "usfmae.client", "doctor", str(running.sites["hospital-2"].root)]
    result = subprocess.run(doctor, env=environment(running), capture_output=True, text=True)
    assert result.returncode == 6 and f"{word} the server's" in result.stdout
    wrong.stop()
    running.running.remove(wrong)
    running.environment = {}
    running.start_site("hospital-2")
    judge(running, f"a clock 10 minutes {word}", wanted, running.names[:2], began)


def environment(federation: Federation) -> dict[str, str]:
    from tests.e2e.federation import ENVIRONMENT

    return {**ENVIRONMENT, **federation.environment}
