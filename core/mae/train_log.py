"""The log of a run: one JSON object a line, the truth from which every curve is drawn."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from usfmae.core.files import append_line, write_atomic


class Journal:
    """Appends records to a file (nowhere for None); lines after `step`, of a run that was cut, are dropped first."""

    def __init__(self, path: Path | None, step: int) -> None:
        self.path, self.last_loss = path, math.nan
        if path and path.exists():
            kept = [entry for entry in read(path) if entry["step"] <= step]
            write_atomic(path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
            self.last_loss = next((float(e["loss"]) for e in reversed(kept) if "loss" in e), math.nan)
        elif path:
            path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, record: Any) -> None:
        """One line: a dataclass or a mapping with the key `step`."""
        if self.path:
            values = dataclasses.asdict(record) if dataclasses.is_dataclass(record) else record  # type: ignore[arg-type]
            append_line(self.path, json.dumps(values))


def read(path: Path) -> list[dict[str, Any]]:
    """Every whole line; a last line that a crash has cut is left out."""
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def append(path: Path, entry: dict[str, Any]) -> None:
    """One line more, in a log that a Journal keeps."""
    append_line(path, json.dumps(entry))
