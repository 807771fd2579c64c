"""kill -9 of aggregator, custodian and site in each phase of a sealed round: the same bits as undisturbed.

As test_faults_kills.py, for what a sealed round adds: a program is held at an exact point, one is killed, the rest goes
on. After each round the encoder must be that of the undisturbed campaign, and its transcript must prove it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.e2e import tables
from tests.e2e.federation import Program
from tests.e2e.sealed import SealedFederation
from tests.e2e.test_faults_kills import Matrix
from usfmae.server.ledger import Ledger
from usfmae.server.rounds.sealing import verified

pytestmark = pytest.mark.faults

# where it is held, of which message, what is killed
CELLS = [
    ("packed, result not written", "", "worker"),
    ("staged, not sent", "", "agent"),
    ("masking", "", "agent"),
    ("upload", "", "agent"),
    ("custodian asked", "open", "aggregator"),
    ("custodian answers", "open", "custodian"),
    ("custodian answered", "open", "custodian"),
    ("custodian answered", "open", "aggregator"),
    ("custodian asked", "reveal", "aggregator"),
    ("custodian answers", "reveal", "custodian"),
    ("custodian answered", "reveal", "custodian"),
    ("custodian answered", "reveal", "aggregator"),
    ("custodian asked", "sketch", "aggregator"),
    ("custodian answers", "sketch", "custodian"),
    ("custodian answered", "sketch", "custodian"),
    ("custodian answered", "sketch", "aggregator"),
    ("custodian asked", "sum", "agent"),
    ("custodian answers", "sum", "custodian"),
    ("custodian answered", "sum", "custodian"),
    ("custodian answered", "sum", "aggregator"),
    ("sum is sent", "", "custodian"),
    ("sum is sent", "", "aggregator"),
    ("masks fetched", "", "aggregator"),
    ("sum written", "", "aggregator"),
    ("checkpoint write", "", "aggregator"),
    ("written, not committed", "", "everything"),
]


class SealedMatrix(Matrix):
    """Three hospitals and a custodian."""

    federation: SealedFederation

    def __init__(self, root, chosen: int, cells: Sequence[tuple[str, str, str]], **settings: Any) -> None:
        self.cells = len(cells)
        template = SealedFederation(root / "template", 3, **{"rounds.steps": 3, **settings})
        self.wanted = template.calm(root / "calm", self.cells, chosen)
        self.federation = template.copy(root / "disturbed")
        self.folder = self.federation.held()
        self.round = 0
        self.arm("idle", "1")
        self.custodian = self.federation.start_custodian()
        self.server = self.start_server()
        self.agents = {name: self.federation.start_site(name) for name in self.federation.names}

    def start_server(self) -> Program:
        return self.federation.start_server(self.cells)

    def kill(self, process: str, site: str) -> None:
        if process in ("custodian", "everything"):
            self.federation.kill(self.custodian)
        if process != "everything":
            super().kill(process, site)
            return
        for program in (self.server, self.agents[site]):
            self.federation.kill(program)

    def restart(self, process: str, site: str) -> None:
        if process in ("custodian", "everything"):
            self.custodian = self.federation.start_custodian()
        super().restart(process, site)


def lose(matrix: SealedMatrix, phase: str, message: str, process: str, name: str) -> None:
    """One round in which `process` is killed in `phase`: its encoder is that of the undisturbed campaign, and proven."""
    matrix.round += 1
    began, number, federation = time.monotonic(), matrix.round, matrix.federation
    matrix.reached("idle")
    matrix.arm(phase, message)
    matrix.release("idle")
    site = matrix.site_of(matrix.reached(phase))
    matrix.kill(process, site)
    last = number == matrix.cells
    if not last:
        matrix.arm("idle", str(number + 1))
    matrix.release(phase)
    matrix.restart(process, site)
    federation.wait(f"round {number} after {process} in {phase}", lambda: federation.result(number))
    if not last:
        matrix.reached("idle")

    outcome = tables.fault(federation, name, process, matrix.wanted[number - 1], [number], federation.names, began)
    assert outcome == (True, 0, [federation.names])
    summary = Ledger(federation.home.ledger).last_round().summary
    assert len(verified(federation.home, number, summary["transcript"]).summed) == 3
    federation.verify_logs()


@pytest.fixture(scope="module")
def matrix(tmp_path_factory, request) -> Iterator[SealedMatrix]:
    chosen = sum(item.path == request.path for item in request.session.items)
    made = SealedMatrix(tmp_path_factory.mktemp("sealed-kills"), chosen, CELLS)
    yield made
    made.federation.stop()


@pytest.mark.parametrize(("phase", "message", "process"), CELLS)
def test_a_killed_process_changes_no_bit(matrix, phase, message, process):
    lose(matrix, phase, message, process, f"sealed: {phase} {message}".strip())
