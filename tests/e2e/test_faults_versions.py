"""Updates on different days: programs of this release and of the next one in one round. Nobody waits for anybody."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import tables
from tests.e2e.federation import Federation

pytestmark = pytest.mark.faults

ROUNDS = 2
NEXT = Path(__file__).parent / "next_version"
OLD, NEW = ({"PYTHONPATH": str(NEXT), "FEDERATION_VERSION": version} for version in ("this", "next"))
EARLIER = "asking in an earlier protocol"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, str]:
    """Two hospitals, and what this release alone makes of two rounds."""
    root = tmp_path_factory.mktemp("versions")
    made = Federation(root / "template", 2, **{"rounds.steps": 12})
    return made, made.calm(root / "calm", ROUNDS)[-1]


@pytest.fixture
def running(template: tuple[Federation, str], tmp_path: Path) -> Iterator[Federation]:
    federation = template[0].copy(tmp_path / "federation")
    yield federation
    federation.stop()


def judge(federation: Federation, what: str, wanted: str, began: float) -> None:
    federation.wait_rounds(ROUNDS)
    outcome = tables.fault(federation, "update", what, wanted, range(1, ROUNDS + 1), federation.names, began)
    assert outcome == (True, 0, [federation.names] * ROUNDS)
    federation.verify_logs()


def started(federation: Federation, version: dict[str, str], name: str) -> Path:
    """A program of this version, `server` or a hospital's; its log."""
    federation.environment = version
    program = federation.start_server(ROUNDS) if name == "server" else federation.start_site(name)
    return program.log


def held(version: dict[str, str], folder: Path) -> dict[str, str]:
    return {**version, "FEDERATION_HOLD": str(folder)}


def test_an_aggregator_of_the_next_version_asks_each_hospital_in_its_own(template, running):
    began = time.monotonic()
    server = started(running, NEW, "server")
    started(running, NEW, "hospital-1")
    old = started(running, OLD, "hospital-2")
    judge(running, "the aggregator and one of two hospitals are newer", template[1], began)
    lines = [line for line in server.read_text().splitlines() if EARLIER in line]
    assert len(lines) == 1 and "hospital-2" in lines[0]
    assert "something failed" not in old.read_text()  # no false alarm: it is how the aggregator learns the version


def test_a_hospital_of_the_next_version_answers_an_older_aggregator(template, running):
    began = time.monotonic()
    server = started(running, OLD, "server")
    started(running, NEW, "hospital-1")
    started(running, OLD, "hospital-2")
    judge(running, "one of two hospitals is newer", template[1], began)
    assert EARLIER not in server.read_text()


@pytest.mark.parametrize("updated", ["server", "hospital-1"])
def test_a_program_that_is_updated_in_the_middle_of_a_training(template, running, updated):
    began = time.monotonic()
    folder = running.held()
    (folder / "training").write_text("")
    names = ["server", *running.names]
    for name in names:
        started(running, held(OLD, folder), name)
    taken = folder / "training.taken"
    running.wait("a training", taken.exists)
    running.kill(next(program for program in running.running if program.name == updated))
    started(running, held(NEW, folder), updated)
    taken.unlink()
    judge(running, f"{updated} is updated during training", template[1], began)
