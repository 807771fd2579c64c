"""Steps of a long run, each done once: what is done stands in a file with the recipe it was done for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from usfmae.core.bench.evaluate import safe_name, save_json
from usfmae.core.types import recipe_id

Told = Callable[[str, str], None]  # step, what happened


class Steps:
    """The steps that are done, in a folder."""

    def __init__(self, folder: Path, report: Told) -> None:
        self.folder, self.told = folder, report
        self.seconds: dict[str, float] = {}  # of the steps that this run asked for, in order

    def do(self, name: str, recipe: dict[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a step: read back where it was done for this recipe, else worked out and kept.

        The time of a step that was cut and begun again is that of its last attempt.
        """
        path = self.folder / f"{safe_name(name)}.json"
        key = recipe_id({"step": name, **recipe})
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError):
            record = {}
        if record.get("recipe") != key:
            self.told(name, "begins")
            began = time.perf_counter()
            result = work()
            record = {"recipe": key, "seconds": round(time.perf_counter() - began, 2), "result": result}
            save_json(path, record)
            self.told(name, f"done, {record['seconds']:.0f} s")
        else:
            self.told(name, f"done before, {record['seconds']:.0f} s")
        self.seconds[name] = record["seconds"]
        return dict(record["result"])
