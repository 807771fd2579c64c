"""What `prepare` remembers, below `CORPUS/ledger/`: enough to go on after a crash, nothing that names a patient.

    corpus.json      the recipe this corpus is made by
    places.jsonl     what each file was identified as, under an HMAC of its place, size and time
    plans/           which scans go into which shard, written before the work
    *.lock           empty; held while a run works
    tasks/           what became of each scan of a shard, written after the shard: a task is done once this exists

No clock stands in any of them, so an interrupted run and an uninterrupted one leave the same bytes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from usfmae.core.corpus.shard import FOLDER
from usfmae.core.errors import CorpusError, ResourceError, TryLaterError, UsageError
from usfmae.core.files import write_atomic
from usfmae.core.sandbox.worker import ScanResult
from usfmae.core.types import Shard

FORMAT = 1


class CorpusLedger:
    """The ledger of one corpus."""

    def __init__(self, corpus: Path) -> None:
        self.corpus = corpus
        self.root = corpus / "ledger"

    def open(self, recipe: str, settings: dict[str, Any]) -> None:
        """Start a ledger, or go on with one of the same recipe. UsageError where it was made by another."""
        beside = self.root / "corpus.json"
        if not beside.exists():
            _write(beside, {"format": FORMAT, "recipe": recipe, "settings": settings})
            return
        if _read(beside).get("recipe") != recipe:
            raise UsageError(
                f"corpus {self.corpus}",
                "was prepared with other settings or another secret",
                "give the same settings, or another --corpus",
            )

    # Locks ----------------------------------------------------------------------------------------------------

    @contextmanager
    def working(self, shared: bool = False) -> Iterator[None]:
        """One run at a time, or several parts of one run. TryLaterError where another run is at work.

        Pieces of files that a killed run left are removed.
        """
        with self._lock("work.lock") as file:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError:
                raise TryLaterError(f"corpus {self.corpus}", "another run is writing to it", "wait for it") from None
            if not shared:
                for partial in self.corpus.rglob(".*.partial"):
                    partial.unlink(missing_ok=True)
            yield

    @contextmanager
    def planning(self) -> Iterator[None]:
        """Waits until no other part of the run is finding and planning."""
        with self._lock("plan.lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _lock(self, name: str) -> Iterator[IO[bytes]]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / name).open("ab")
        except OSError as error:
            raise ResourceError(
                f"corpus {self.corpus}", error.strerror or str(error), "give a folder to write into"
            ) from None
        with file:
            yield file

    # Places ---------------------------------------------------------------------------------------------------

    def places(self) -> dict[str, dict[str, Any]]:
        """Every identification so far; a line torn by a crash is cut off."""
        path = self.root / "places.jsonl"
        known: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return known
        whole = 0
        with path.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    known[entry.pop("place")] = entry
                except (ValueError, KeyError):
                    break
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
        if whole != path.stat().st_size:
            os.truncate(path, whole)
        return known

    def add_places(self, entries: list[dict[str, Any]]) -> None:
        """Append identifications, in the order given."""
        if entries:
            text = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in entries)
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                with (self.root / "places.jsonl").open("a") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise ResourceError(f"disk of {self.root}", "is full", "free space and run the same again") from None

    # Plans and tasks ------------------------------------------------------------------------------------------

    def plans(self) -> Iterator[tuple[str, list[list[str]]]]:
        """(task name, units) of every plan in order; a unit is a list of scan ids."""
        for path in sorted((self.root / "plans").glob("plan-*.json")):
            for task in _read(path)["tasks"]:
                yield task["name"], task["units"]

    def add_plan(self, tasks: list[list[list[str]]]) -> None:
        """Fix which scans make which shards. Names continue from the plans before."""
        number = len(list((self.root / "plans").glob("plan-*.json"))) + 1
        named = [{"name": f"{number:04d}-{i:06d}", "units": units} for i, units in enumerate(tasks)]
        _write(self.root / "plans" / f"plan-{number:04d}.json", {"tasks": named})

    def is_done(self, task: str) -> bool:
        """True where the task's entry and every shard it names are there: a shard that was removed is made again."""
        path = self.root / "tasks" / f"{task}.json"
        return path.exists() and all(self._is_there(name) for name in _read(path).get("shards", ()))

    def _is_there(self, shard: str) -> bool:
        path = self.corpus / FOLDER / shard
        return path.exists() and path.with_suffix(".json").exists()

    def finish(self, task: str, results: list[ScanResult], shards: list[Shard]) -> None:
        entry = {"scans": [asdict(result) for result in results], "shards": [shard.path.name for shard in shards]}
        _write(self.root / "tasks" / f"{task}.json", entry)

    def results(self) -> dict[str, ScanResult]:
        """What became of each scan, by id; a scan tried again counts as it ended last."""
        found: dict[str, ScanResult] = {}
        for path in sorted((self.root / "tasks").glob("*.json")):
            if self.is_done(path.stem):
                found.update((values["id"], ScanResult(**values)) for values in _read(path)["scans"])
        return found


def _write(path: Path, value: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(value, sort_keys=True, indent=1).encode() + b"\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise CorpusError(f"ledger {path}", "is damaged", "restore it, or prepare into a new --corpus")
    return value
