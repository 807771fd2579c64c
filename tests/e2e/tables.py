"""The tables that `make test-faults` and `make test-attacks` print: a test adds a line, conftest prints at the end."""

from __future__ import annotations

HEADS = {
    "faults": ("phase", "what failed", "hash", "repeated", "twice", "seconds"),
    "attacks": ("attack", "verdict", "audited", "honest merge"),
}
ROWS: dict[str, list[tuple[str, ...]]] = {name: [] for name in HEADS}


def add(table: str, *cells: object) -> None:
    assert len(cells) == len(HEADS[table])
    ROWS[table].append(tuple(str(cell) for cell in cells))


def text(table: str) -> list[str]:
    """The table's lines, columns aligned; none where no test added to it."""
    if not ROWS[table]:
        return []
    rows = [HEADS[table], *ROWS[table]]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(HEADS[table]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in rows]
