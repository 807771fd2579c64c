"""The tables that `make test-faults` and `make test-attacks` print: a test adds a line, conftest prints at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.e2e.federation import Federation

HEADS = {
    "faults": ("phase", "what failed", "hash", "repeated", "twice", "seconds"),
    "attacks": ("attack", "verdict", "audited", "honest merge"),
}
ROWS: dict[str, list[tuple[str, ...]]] = {name: [] for name in HEADS}


def add(table: str, *cells: object) -> None:
    assert len(cells) == len(HEADS[table])
    ROWS[table].append(tuple(str(cell) for cell in cells))


def fault(
    federation: Federation, phase: str, what: str, wanted: str, rounds: Sequence[int], sites: list[str], began: float
) -> tuple[bool, int, list[list[str]]]:
    """A line of the fault table. Returns whether the last round's hash is the wanted one, the trainings done again, and
    who was merged in each of `rounds`: (True, 0, [sites, ...]) where the fault left no trace.
    """
    last = rounds[-1]
    equal = federation.result(last) == wanted
    repeated = sum(federation.trainings(name) for name in sites) - last * len(sites)
    merged = [federation.admitted(number) for number in rounds]
    twice = sum(len(names) - len(set(names)) for names in merged)
    seconds = f"{time.monotonic() - began:.0f}"
    add("faults", phase, what, "equal" if equal else "DIFFERS", repeated, twice, seconds)
    return equal, repeated, merged


def text(table: str) -> list[str]:
    """The table's lines, columns aligned; none where no test added to it."""
    if not ROWS[table]:
        return []
    rows = [HEADS[table], *ROWS[table]]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(HEADS[table]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in rows]
