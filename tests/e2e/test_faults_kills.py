"""kill -9 of every process in every phase: the campaign goes on and ends with the bytes it would have had.

One campaign runs undisturbed, a copy of it (same keys, same corpora) loses a process in each of its rounds. A program
is held at an exact point of its code (hold/sitecustomize.py), a process is killed by its id, the rest goes on. After
each round the encoder's hash must be that of the undisturbed campaign's round, every site must have trained once more
and no more, and two different updates must have been merged. Gateway and round loop are one process here, so
"aggregator" stands for Flower's SuperLink and ServerApp both; "agent" for its SuperNode.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import tables
from tests.e2e.federation import Federation, Program

pytestmark = pytest.mark.faults

PHASES = ("idle", "download", "training", "upload", "merging", "checkpoint write")
PROCESSES = ("aggregator", "agent", "worker")
CELLS = [(phase, process) for phase in PHASES for process in PROCESSES] + [
    ("request half sent", "aggregator"),
    ("half way to the base", "agent"),
    ("spooled, not noted", "aggregator"),
    ("one of two noted", "aggregator"),
    ("written, not committed", "aggregator"),
    ("committed, spool not cleared", "aggregator"),
    ("training checkpoint", "worker"),
    ("packed, result not written", "worker"),
    ("staged, not sent", "agent"),
    ("training", "agent and worker"),
    ("training", "everything"),
]


class Matrix:
    """The campaign that is disturbed, and what the undisturbed one made in each round."""

    def __init__(self, root: Path, rounds: int, cells: Sequence[tuple[str, str]] = CELLS, **settings: Any) -> None:
        self.cells = cells
        template = Federation(root / "template", 2, **{"rounds.steps": 12, **settings})
        self.wanted = template.calm(root / "calm", len(cells), rounds)
        self.federation = template.copy(root / "disturbed")
        self.folder = self.federation.held()
        self.round = 0
        self.arm("idle", "1")
        self.server = self.start_server()
        self.agents = {name: self.federation.start_site(name) for name in self.federation.names}

    def start_server(self) -> Program:
        return self.federation.start_server(len(self.cells))

    # points

    def arm(self, point: str, word: str = "") -> None:
        part = self.folder / ".arming"
        part.write_text(word)
        part.rename(self.folder / point)

    def reached(self, point: str) -> int:
        """Process id of the program that is held there."""
        taken = self.folder / f"{point}.taken"
        return self.federation.wait(f"round {self.round}: {point}", lambda: taken.exists() and int(taken.read_text()))

    def release(self, point: str) -> None:
        (self.folder / f"{point}.taken").unlink()

    # kills

    def kill(self, process: str, site: str) -> None:
        """kill -9, and a start again as the machine's service manager would; workers are started by their agents."""
        if process in ("aggregator", "everything"):
            self.federation.kill(self.server)
        if process in ("agent", "agent and worker", "everything"):
            self.federation.kill(self.agents[site])
        if process in ("worker", "agent and worker", "everything"):
            worker = self.federation.worker(site)
            assert worker, "no training process in this phase"
            os.kill(worker, signal.SIGKILL)

    def restart(self, process: str, site: str) -> None:
        if process in ("agent", "agent and worker", "everything"):
            self.agents[site] = self.federation.start_site(site)
        if process in ("aggregator", "everything"):
            self.server = self.start_server()

    def site_of(self, pid: int) -> str:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        return next(
            (name for name in self.federation.names if str(self.federation.sites[name].root) in line), "hospital-1"
        )


@pytest.fixture(scope="module")
def matrix(tmp_path_factory, request) -> Iterator[Matrix]:
    chosen = sum(item.path == request.path for item in request.session.items)  # with -k, fewer than all
    made = Matrix(tmp_path_factory.mktemp("kills"), chosen)
    yield made
    made.federation.stop()


@pytest.mark.parametrize(("phase", "process"), CELLS)
def test_a_killed_process_changes_no_bit(matrix, phase, process):
    lose(matrix, phase, process)


def lose(matrix: Matrix, phase: str, process: str, name: str = "") -> None:
    """Kill a process in the next round, in this phase; the row of the table has the name, else the phase's."""
    matrix.round += 1
    began, number, federation = time.monotonic(), matrix.round, matrix.federation
    held = matrix.reached("idle")
    if phase != "idle":
        matrix.arm(phase)
        matrix.release("idle")
        held = matrix.reached(phase)
    site = matrix.site_of(held)
    matrix.kill(process, site)
    last = number == len(matrix.cells)
    if not last:
        matrix.arm("idle", str(number + 1))
    matrix.release(phase)
    matrix.restart(process, site)
    federation.wait(f"round {number} after {process} in {phase}", lambda: federation.result(number))
    if not last:
        matrix.reached("idle")

    wanted, sites = matrix.wanted[number - 1], federation.names
    outcome = tables.fault(federation, name or phase, process, wanted, [number], sites, began)
    assert outcome == (True, 0, [federation.names])
    federation.verify_logs()
