"""Fixtures of the tests with real processes, and the tables they print."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import tables
from tests.e2e.federation import Federation


@pytest.fixture
def federate(tmp_path: Path) -> Iterator[Callable[..., Federation]]:
    """`federate(sites=2, **settings)` makes a federation; its processes end with the test."""
    made: list[Federation] = []

    def make(sites: int = 2, name: str = "federation", **settings: Any) -> Federation:
        made.append(Federation(tmp_path / name, sites, **settings))
        return made[-1]

    yield make
    for federation in made:
        federation.stop()


@pytest.fixture(scope="session")
def honest_alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the three honest hospitals of the arena make of round 1 without anybody else."""
    from tests.e2e.arena import Stage

    with Stage(tmp_path_factory.mktemp("honest")) as stage:
        return stage.done()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The tables of `make test-faults` and `make test-attacks`."""
    for name in tables.HEADS:
        for line in tables.text(name):
            terminalreporter.write_line(line)
