"""Takes over the ledger that version 0.1 kept as files: `places.jsonl` and `plans/`. Its `tasks/` are read as today's.

One transaction: a crash leaves either the old files or the whole of them in the ledger, and nothing twice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from usfmae.core.prepare.ledger import CorpusLedger

PLACES, PLANS = "places.jsonl", "plans"


def is_there(root: Path) -> bool:
    return (root / PLACES).exists() or (root / PLANS).exists()


def take_over(ledger: CorpusLedger) -> None:
    """Files are known by their keys, without their folders: the next run puts each where it lies."""
    from usfmae.core.prepare.ledger import ELSEWHERE

    for entry in _lines(ledger.root / PLACES):
        key = bytes.fromhex(entry["place"])[:16] if len(entry["place"]) == 64 else entry["place"].encode()
        if ledger.elsewhere(key) is None:
            ledger.add_place(ELSEWHERE, key, {"outcome": "scan", "id": entry["place"], **entry})
    for path in sorted((ledger.root / PLANS).glob("plan-*.json")):
        _plan(ledger, int(path.stem.removeprefix("plan-")), path)


def _plan(ledger: CorpusLedger, number: int, path: Path) -> None:
    from usfmae.core.prepare.ledger import blob, read_object

    for task in read_object(path)["tasks"]:
        n = ledger.add_task(task["name"], number)
        rows = [(n, unit, blob(id_)) for unit, ids in enumerate(task["units"]) for id_ in ids]
        ledger.db.executemany("UPDATE scans SET task = ?, unit = ? WHERE id = ? AND outcome IS NULL", rows)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a file of JSON lines; one torn by a crash, and what follows it, is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                entry = json.loads(line)
                entry["place"].encode()
            except (ValueError, KeyError, TypeError, AttributeError):
                return
            if line.endswith(b"\n"):
                yield entry


def remove(root: Path) -> None:
    (root / PLACES).unlink(missing_ok=True)
    shutil.rmtree(root / PLANS, ignore_errors=True)
