"""Takes over the ledger that version 0.1 kept as files: `places.jsonl` and `plans/`. Its `tasks/` are read as today's.

One transaction: a crash leaves either the old files or the whole of them in the ledger, and nothing twice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from usfmae.core.prepare.ledger_file import read_object

PLACES, PLANS = "places.jsonl", "plans"


def is_there(root: Path) -> bool:
    return (root / PLACES).exists() or (root / PLANS).exists()


def places(root: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Key of each file that was known, and what was known of it."""
    for entry in _lines(root / PLACES):
        key = bytes.fromhex(entry["place"])[:16] if len(entry["place"]) == 64 else entry["place"].encode()
        yield key, {"outcome": "scan", "id": entry["place"], **entry}


def plans(root: Path) -> Iterator[tuple[int, str, list[list[str]]]]:
    """(number of the plan, name of a task, ids of the scans of each of its units)."""
    for path in sorted((root / PLANS).glob("plan-*.json")):
        for task in read_object(path)["tasks"]:
            yield int(path.stem.removeprefix("plan-")), task["name"], task["units"]


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
