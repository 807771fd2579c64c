"""kill -9 in every phase, on either side: the campaign goes on and ends with the bytes it would have had.

One federation is made once; each row runs a copy (same keys, same corpora), so that the final encoder's hash can be
compared with the undisturbed run's. The aggregator dies by its own hand at an exact point of its code (a wrapper in
the test sends SIGKILL to itself there); agents and workers are killed by process id when their status says where they
are. Every row also checks that no finished training was repeated and no update counted twice.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from usfmae.core import audit

pytestmark = pytest.mark.faults

ROUNDS = 2
TABLE: list[tuple[str, str, str, str, str]] = []

# Where the aggregator dies: a function of the program, and whether before, in the middle of, or after it.
POINTS = {
    "idle (round just opened)": ("usfmae.server.ledger:Ledger.open_round", "after", 1),
    "download (request half sent)": ("usfmae.server.transit:TransitStore.put", "before", 12),
    "training (both sites asked)": ("usfmae.server.rounds:Loop._may_close", "before", 12),
    "upload (reply arriving)": ("usfmae.server.transit:TransitStore._charge", "before", 20),
    "upload (reply spooled, not noted)": ("usfmae.server.spool:store", "after", 1),
    "upload (one of two noted)": ("usfmae.server.rounds:Loop._verdict", "after", 1),
    "merging (half way)": ("usfmae.server.weights:Writer.write", "before", 70),
    "checkpoint write (not renamed)": ("usfmae.server.aggregate:merge.finish", "before", 1),
    "checkpoint written, not committed": ("usfmae.server.ledger:Ledger.commit_round", "before", 1),
    "committed, spool not cleared": ("usfmae.server.spool:clear", "before", 1),
}

SABOTAGE = """
import os, signal, importlib
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def sabotage(where, when, count):
    module, _, path = where.partition(":")
    holder = importlib.import_module(module)
    if path == "merge.finish":
        holder, path = importlib.import_module("usfmae.server.weights"), "Writer.finish"
        real = holder.Writer.finish
        def finish(self):  # only the checkpoint's, not a spooled update's
            if self._metadata: die()
            return real(self)
        holder.Writer.finish = finish
        return
    *outer, name = path.split(".")
    for part in outer:
        holder = getattr(holder, part)
    real, seen = getattr(holder, name), [0]
    def wrapped(*a, **k):
        seen[0] += 1
        if when == "before" and seen[0] == count: die()
        value = real(*a, **k)
        if when == "after" and seen[0] == count: die()
        return value
    setattr(holder, name, wrapped)
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Iterator[tuple[Any, str]]:
    """A federation to copy, and the hash its undisturbed run ends with."""
    from tests.e2e.conftest import Federation

    root = tmp_path_factory.mktemp("undisturbed")
    federation = Federation(root / "template", 2, **{"rounds.steps": 12})
    copied = federation.copy(root / "run")
    copied.start_server(ROUNDS)
    copied.start_sites()
    result = copied.wait_rounds(ROUNDS)["hash"]
    copied.stop()
    yield federation, result
    federation.stop()


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    yield
    print(f"\n\n{'killed':12s} {'phase':38s} {'hash':8s} {'trainings':10s} counted twice")
    for row in TABLE:
        print(f"{row[0]:12s} {row[1]:38s} {row[2]:8s} {row[3]:10s} {row[4]}")


@pytest.fixture
def run(undisturbed, tmp_path) -> Iterator[Any]:
    federation = undisturbed[0].copy(tmp_path / "run")
    yield federation
    federation.stop()


def sabotaged(federation: Any, where: str, when: str, count: int) -> Any:
    """The aggregator's process, which will kill itself at this point."""
    from tests.e2e.conftest import Program

    words = ["serve", str(federation.home.root), "--rounds", str(ROUNDS)]
    code = f"{SABOTAGE}\nsabotage({where!r}, {when!r}, {count})\nfrom usfmae.server.cli import main; main()"
    return Program("server", [sys.executable, "-c", code, *words], federation.root / "server.log")


def judge(federation: Any, killed: str, phase: str, wanted: str, seconds: float = 400) -> None:
    """Wait for the end; compare the hash, the number of trainings and of merged updates with the undisturbed run."""
    status = federation.wait_rounds(ROUNDS, seconds)
    federation.stop()
    trainings = [finished(federation, name) for name in federation.names]
    merged = [sum(v["verdict"] == "admitted" for v in r["verdicts"]) for r in status["rounds"]]
    equal = "equal" if status["hash"] == wanted else "DIFFERS"
    TABLE.append((killed, phase, equal, "+".join(map(str, trainings)), "no" if merged == [2] * ROUNDS else str(merged)))
    assert (status["hash"], trainings, merged) == (wanted, [ROUNDS] * 2, [2] * ROUNDS)
    audit.verify(federation.home.audit)
    for site in federation.sites.values():
        audit.verify(site.audit_log)


def finished(federation: Any, name: str) -> int:
    """Trainings a site has finished: every one is staged exactly once."""
    return sum(1 for e in audit.entries(federation.sites[name].audit_log) if e["event"] == "outbox.staged")


@pytest.mark.parametrize("phase", POINTS)
def test_aggregator_killed(phase, run, undisturbed):
    doomed = sabotaged(run, *POINTS[phase])
    run.start_sites()
    try:
        assert doomed.process.wait(400) == -signal.SIGKILL, doomed.log.read_text()[-2000:]
    finally:
        doomed.stop()
    run.start_server(ROUNDS)
    judge(run, "aggregator", phase, undisturbed[1])


def agent_state(federation: Any, name: str) -> str:
    file = federation.sites[name].root / "status.json"
    return str(json.loads(file.read_text()).get("state", "")) if file.exists() else ""


def worker_of(federation: Any, name: str) -> int:
    """Process id of the site's training worker, 0 where there is none."""
    root = str(federation.sites[name].root).encode()
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if entry.name.isdigit() and b"usfmae.client.trainer" in words and root in words:
            return int(entry.name)
    return 0


@pytest.mark.parametrize("phase", ["downloading", "training", "uploading"])
def test_agent_killed(phase, run, undisturbed):
    run.start_server(ROUNDS)
    first, _ = run.start_sites()
    began = time.monotonic()
    while agent_state(run, "hospital-1") != phase and time.monotonic() - began < 300:
        time.sleep(0.002)
    reached = agent_state(run, "hospital-1")
    first.kill()
    run.running.remove(first)
    run.start_site("hospital-1")
    judge(run, "agent", phase if reached == phase else f"{phase} (seen: {reached})", undisturbed[1])


def test_worker_killed_while_training(run, undisturbed):
    run.start_server(ROUNDS)
    run.start_sites()
    worker = run.wait("a worker", lambda: worker_of(run, "hospital-1"))
    run.wait("training", lambda: agent_state(run, "hospital-1") == "training")
    os.kill(worker, signal.SIGKILL)
    judge(run, "worker", "training", undisturbed[1])


def test_the_supervisor_restarts_a_killed_aggregator(run, undisturbed):
    run.start_server(ROUNDS)
    run.start_sites()
    child = run.wait("the aggregator's process", lambda: aggregator_of(run))
    run.wait("training", lambda: agent_state(run, "hospital-1") == "training")
    os.kill(child, signal.SIGKILL)
    judge(run, "aggregator", "training, supervisor restarts it", undisturbed[1])


def aggregator_of(federation: Any) -> int:
    root = str(federation.home.root).encode()
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if entry.name.isdigit() and root in words and b"serve" in words:
            return int(entry.name) if federation.home.address.exists() else 0
    return 0
