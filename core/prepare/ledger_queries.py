"""What the ledger of a corpus answers: counts, scans, where an image comes from, what is kept back for a person."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usfmae.core.corpus.shard import FOLDER, image_count
from usfmae.core.prepare.ledger_file import LedgerFile
from usfmae.core.types import Scan, Trail, content_id

WHOLE = -1  # in place of a frame's number: the whole scan


@dataclass(frozen=True)
class KnownScan:
    """A scan as it was identified, without the place where it lies."""

    n: int
    id: str
    kind: str
    group: str
    dataset: str
    planned: int  # frames that are likely to be kept
    unit: int  # scans of one task and unit are cleaned together

    def at(self, path: Path, member: str = "", stamp: int = 0) -> Scan:
        return Scan(path, self.kind, Trail(self.id), member, self.group, self.dataset, stamp)


@dataclass(frozen=True)
class HeldEntry:
    """What is kept back for a person: a frame of a scan, or the WHOLE scan."""

    scan: str
    frame: int
    reason: str


def blob(id_: str) -> bytes:
    """An id of 64 hex digits as its 32 bytes."""
    try:
        return bytes.fromhex(id_) if len(id_) == 64 else id_.encode()
    except ValueError:
        return id_.encode()


def text(id_: bytes) -> str:
    return id_.hex() if len(id_) == 32 else id_.decode()


def entry_of(scan: str, frame: int) -> str:
    """The name of what is kept back: a frame of a scan, or the WHOLE scan."""
    return content_id(scan, str(frame))[:16]


class LedgerQueries(LedgerFile):
    """Reading; each question opens a connection of its own."""

    def scans_of(self, task: int) -> list[KnownScan]:
        """The scans of a task, unit by unit in the order of the plan."""
        with self.reading() as db:
            return [
                known_scan(r)
                for r in db.execute(
                    "SELECT n, id, kind, grp, dataset, planned, unit FROM scans WHERE task = ? ORDER BY unit, n",
                    (task,),
                )
            ]

    def planned(self, tasks: Iterable[int]) -> int:
        """Frames that these tasks are likely to keep."""
        with self.reading() as db:
            query = "SELECT coalesce(sum(planned), 0) FROM scans WHERE task = ?"
            return sum(int(db.execute(query, (task,)).fetchone()[0]) for task in tasks)

    def counts(self, present: bool | None = None) -> Counter[str]:
        """The books: of the folders of the last run (True), or of everything that ever came in (None)."""
        with self.reading() as db:
            rows = db.execute("SELECT name, sum(value) FROM books WHERE present >= ? GROUP BY name", (bool(present),))
            return Counter({name: value for name, value in rows if value})

    def scan(self, id_: str) -> KnownScan | None:
        """A scan that was identified."""
        with self.reading() as db:
            row = db.execute(
                "SELECT n, id, kind, grp, dataset, planned, unit FROM scans WHERE id = ? AND kind != ''", (blob(id_),)
            ).fetchone()
        return known_scan(row) if row else None

    def scans_in(self, groups: Iterable[str]) -> list[str]:
        """The scans of these patients."""
        with self.reading() as db:
            query = "SELECT id FROM scans WHERE grp = ?"
            return [text(id_) for group in groups for (id_,) in db.execute(query, (blob(group),))]

    def together(self, id_: str) -> list[KnownScan]:
        """A scan and those it was cleaned together with, in order; empty where it is unknown."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT n, id, kind, grp, dataset, planned, unit FROM scans WHERE (task, unit) = (SELECT task, unit FROM scans WHERE id = ?) "
                "ORDER BY n", (blob(id_),),
            ).fetchall()  # fmt: skip
        alone = self.scan(id_)
        return [known_scan(row) for row in rows] or ([alone] if alone else [])

    def origin(self, shard: str, row: int) -> tuple[str, int] | None:
        """(scan, frame) of an image, by the index; None for a shard that `prepare` did not pack, or version 0.1 did."""
        with self.reading() as db:
            row_of_shard = db.execute(
                "SELECT s.id, p.first, p.frames FROM packed p JOIN scans s ON s.n = p.scan WHERE p.shard = "
                "(SELECT n FROM shards WHERE name = ?) AND p.first <= ? ORDER BY p.first DESC LIMIT 1", (shard, row),
            ).fetchone()  # fmt: skip
        if row_of_shard is None or row - row_of_shard[1] >= len(frames := json.loads(row_of_shard[2])):
            return None
        return text(row_of_shard[0]), int(frames[row - row_of_shard[1]])

    def held(self, entry: str) -> HeldEntry | None:
        """What is kept back under this name."""
        with self.reading() as db:
            row = db.execute("SELECT scan, frame, reason FROM held WHERE entry = ?", (entry,)).fetchone()
        return HeldEntry(text(row[0]), row[1], row[2]) if row else None

    def held_by_reason(self) -> Counter[str]:
        """Reason -> frames and whole scans that were ever kept back."""
        return Counter({name[6:]: count for name, count in self.counts().items() if name.startswith("entry ")})

    def task_scans(self, task: str, group: str) -> list[str]:
        """Scans of a group of which a task kept something: where an image of version 0.1 may come from."""
        with self.reading() as db:
            rows = db.execute("SELECT s.id FROM scans s JOIN tasks t ON t.n = s.task WHERE t.name = ? AND s.grp = ? "
                              "AND s.kept > 0 ORDER BY s.n", (task, blob(group)))  # fmt: skip
            return [text(id_) for (id_,) in rows]

    def shards(self) -> dict[str, int]:
        """Name of each shard's file -> images in it."""
        with self.reading() as db:
            return dict(db.execute("SELECT name, images FROM shards"))

    def images(self) -> int:
        """Images in the corpus, those of shards that others put into it too."""
        return sum(self.image_counts().values())

    def image_counts(self) -> dict[str, int]:
        """Name of the index of each shard there is -> images in it: one listing, one query."""
        folder, in_ledger = self.corpus / FOLDER, self.shards()
        names = [name for name in os.listdir(folder) if name.endswith(".json")] if folder.exists() else []  # noqa: PTH208
        return {name: in_ledger.get(f"{name[:-5]}.npy") or image_count(folder / name) for name in names}

    def way_to(self, id_: str) -> list[tuple[list[bytes], bytes, bool]]:
        """Where a scan lay when it was last met: (keys of the folders from its source down, key of the file, whether
        the last of the folders is an archive), one for each copy."""
        with self.reading() as db:
            rows = db.execute("SELECT folder, key FROM places WHERE folder > 0 AND scan = "
                              "(SELECT n FROM scans WHERE id = ?)", (blob(id_),)).fetchall()  # fmt: skip
            ways = []
            for folder, key in rows:
                keys: list[bytes] = []
                packed = False
                while folder:
                    above, own, archive = db.execute(
                        "SELECT parent, key, archive FROM folders WHERE n = ?", (folder,)
                    ).fetchone()
                    packed = packed or bool(archive)
                    keys, folder = [own, *keys], above
                ways.append((keys, key, packed))
        return ways

    def is_done_with(self, folder: bytes, key: bytes) -> tuple[bool, list[str]]:
        """(whether nothing is left to do with a file, what is kept back of it for a person)."""
        with self.reading() as db:
            row = db.execute(
                "SELECT p.outcome, p.entry, s.id, s.outcome FROM places p JOIN folders f ON f.n = p.folder "
                "LEFT JOIN scans s ON s.n = p.scan WHERE f.key = ? AND p.key = ?", (folder, key),
            ).fetchone()  # fmt: skip
            if row is None:
                return False, []
            held = [entry for (entry,) in db.execute("SELECT entry FROM held WHERE scan = ?", (row[2] or b"",))]
        return row[0] != "scan" or row[3] not in (None, "failed"), held + ([row[1]] if row[1] else [])


def known_scan(row: tuple[Any, ...]) -> KnownScan:
    n, id_, kind, group, dataset, planned, unit = row
    return KnownScan(n, text(id_), kind, text(group), dataset, planned, unit or 0)
