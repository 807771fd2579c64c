"""What `prepare` remembers of a corpus: `CORPUS/ledger/ledger.sqlite`. Nothing in it names a patient, a path or a time.

    corpus.json      the recipe this corpus is made by
    ledger.sqlite    folders and files by keyed hashes, what each scan is, which task cleans it, what became of it
    tasks/           outcomes of tasks, each a file beside its shards until the ledger has taken it over
    *.lock           empty; held while a run works

One process writes at a time (`writing`); pages read at any time (`reading`). The books are kept as the rows change, so
counts cost the same whether a corpus holds a hundred scans or ten million.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from usfmae.core.corpus.shard import FOLDER, image_count
from usfmae.core.errors import UsageError
from usfmae.core.files import write_atomic
from usfmae.core.prepare import takeover
from usfmae.core.prepare.ledger_file import FORMAT, Books, read_object
from usfmae.core.prepare.ledger_queries import WHOLE, LedgerQueries, blob, entry_of, text

ELSEWHERE = 0  # number of the folder of files that were found once and are not there now
UNFORESEEN = "unforeseen-error"  # reason of what a bug kept from being read: it is tried again
UNBALANCED = "not-balanced"  # reason of a scan whose frames are not all accounted for: it is tried again


@dataclass(frozen=True)
class FolderRow:
    """What the ledger has of a folder."""

    n: int
    listing: bytes | None
    parent: int  # 0 for a source


@dataclass(frozen=True)
class PlaceRow:
    """What the ledger has of a file."""

    outcome: str  # "scan", "none", "archive", "quarantined", "refused"
    scan: int | None
    is_open: bool  # a scan that waits to be cleaned


class CorpusLedger(LedgerQueries):
    """The ledger of one corpus: what is written into it, inside `writing`."""

    def open(self, recipe: str, settings: dict[str, Any]) -> None:
        """Start a ledger, or go on with one of the same recipe. UsageError where it was made by another.

        Tasks of which a shard was removed are open again.
        """
        description = self.root / "corpus.json"
        if not description.exists():
            content = {"format": FORMAT, "recipe": recipe, "settings": settings}
            write_atomic(description, json.dumps(content, sort_keys=True, indent=1).encode() + b"\n")
        elif read_object(description).get("recipe") != recipe:
            raise UsageError(
                f"corpus {self.corpus}",
                "was prepared with other settings or another secret",
                "give the same settings, or another --corpus",
            )
        self._reopen_lost()

    # What a run has left ----------------------------------------------------------------------------------------

    def _left_behind(self) -> bool:
        """Whether there are outcomes of tasks, or a ledger of version 0.1, that are not in the ledger yet."""
        return takeover.is_there(self.root) or any((self.root / "tasks").glob("*.json"))

    def _take_over(self) -> None:
        if takeover.is_there(self.root):
            self._take_over_first_version()
            self.save()
            takeover.remove(self.root)
        self.absorb()

    def _take_over_first_version(self) -> None:
        """Files are known by their keys, without their folders: the next run puts each where it lies."""
        for key, answer in takeover.places(self.root):
            if self.elsewhere(key) is None:
                self.add_place(ELSEWHERE, key, answer)
        for plan, task, units in takeover.plans(self.root):
            n = self.add_task(task, plan)
            rows = [(n, unit, blob(id_)) for unit, ids in enumerate(units) for id_ in ids]
            self.db.executemany("UPDATE scans SET task = ?, unit = ? WHERE id = ? AND outcome IS NULL", rows)

    def absorb_if_any(self) -> None:
        """Take over the outcomes of tasks that were done meanwhile."""
        if self._left_behind():
            with self.writing():
                pass

    def absorb(self) -> None:
        """Write the outcomes of tasks into the ledger; each file goes once it is in."""
        for path in sorted((self.root / "tasks").glob("*.json")):
            outcome = read_object(path)
            self._finish(path.stem, outcome.get("scans", []), outcome.get("shards", []))
            self.save()
            path.unlink()

    # Folders and files ------------------------------------------------------------------------------------------

    def folders(self, keys: Iterable[bytes]) -> dict[bytes, FolderRow]:
        """The folders of these keys, of those that are known; at most 500 keys."""
        wanted_keys = list(keys)
        marks = ",".join("?" * len(wanted_keys))
        rows = self.db.execute(f"SELECT key, n, listing, parent FROM folders WHERE key IN ({marks})", wanted_keys)  # noqa: S608
        return {key: FolderRow(n, listing, parent) for key, n, listing, parent in rows}

    def add_folder(self, key: bytes, parent: int, archive: bool = False) -> int:
        cursor = self.db.execute("INSERT INTO folders VALUES (NULL, ?, ?, NULL, ?, 1)", (key, parent, archive))
        return int(cursor.lastrowid or 0)

    def put_below(self, folder: int, parent: int) -> None:
        self.db.execute("UPDATE folders SET parent = ? WHERE n = ?", (parent, folder))

    def open_folders(self) -> set[int]:
        """Folders with a scan that waits to be cleaned, and those that hold such an archive."""
        rows = self.db.execute(
            "SELECT DISTINCT folder FROM places WHERE folder > 0 AND scan IN "
            "(SELECT n FROM scans WHERE outcome IS NULL OR outcome = 'failed')"
        )
        opened = {n for (n,) in rows}
        for folder, parent in self.db.execute("SELECT n, parent FROM folders WHERE archive"):
            if folder in opened:
                opened.add(parent)
        return opened

    def archives(self) -> dict[int, list[int]]:
        """Folder -> the archives in it."""
        children: dict[int, list[int]] = {}
        for n, parent in self.db.execute("SELECT n, parent FROM folders WHERE archive AND live"):
            children.setdefault(parent, []).append(n)
        return children

    def places(self, folder: int) -> dict[bytes, PlaceRow]:
        """The files of a folder by their keys."""
        rows = self.db.execute(
            "SELECT p.key, p.outcome, p.scan, s.n IS NOT NULL AND (s.outcome IS NULL OR s.outcome = 'failed') "
            "FROM places p LEFT JOIN scans s ON s.n = p.scan WHERE p.folder = ?",
            (folder,),
        )
        return {key: PlaceRow(outcome, scan, bool(is_open)) for key, outcome, scan, is_open in rows}

    def elsewhere(self, key: bytes) -> PlaceRow | None:
        """A file that was there once, or that a ledger of version 0.1 knew."""
        row = self.db.execute(
            "SELECT p.outcome, p.scan, s.n IS NOT NULL AND (s.outcome IS NULL OR s.outcome = 'failed') "
            "FROM places p LEFT JOIN scans s ON s.n = p.scan WHERE p.folder = ? AND p.key = ?",
            (ELSEWHERE, key),
        ).fetchone()
        return PlaceRow(row[0], row[1], bool(row[2])) if row else None

    def add_place(self, folder: int, key: bytes, answer: Mapping[str, Any]) -> int | None:
        """Remember what a file is; the number of the scan, None where it is none."""
        outcome, id_ = str(answer["outcome"]), str(answer.get("id", ""))
        if outcome != "scan":
            entry = entry_of(id_, WHOLE) if outcome == "quarantined" else ""
            reason = str(answer.get("reason", ""))
            if entry:
                self._hold(id_, WHOLE, reason or "unreadable")
            self.db.execute(
                "INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?, ?, NULL)", (folder, key, outcome, reason, entry)
            )
            self.books.update(of_place(folder != ELSEWHERE, outcome, reason))
            return None
        with self._recounted([blob(id_)]):
            scan = self._scan(answer)
            self.db.execute("INSERT OR REPLACE INTO places VALUES (?, ?, 'scan', '', '', ?)", (folder, key, scan))
        return scan

    def _scan(self, answer: Mapping[str, Any]) -> int:
        """The number of the scan of this answer, which is added where it is new."""
        values = (
            blob(str(answer["id"])), answer.get("kind", ""), blob(str(answer.get("group", ""))),
            answer.get("dataset", ""), blob(str(answer.get("study", ""))), int(answer.get("planned", 1)),
            answer.get("format", ""), answer.get("device", ""),
        )  # fmt: skip
        self.db.execute(
            "INSERT INTO scans (id, kind, grp, dataset, study, planned, format, device) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, grp = excluded.grp, dataset = excluded.dataset,"
            " study = excluded.study, planned = excluded.planned, format = excluded.format, device = excluded.device"
            " WHERE kind = ''",
            values,
        )
        (n,) = self.db.execute("SELECT n FROM scans WHERE id = ?", values[:1]).fetchone()
        return int(n)

    def settle(self, folder: int, listing: bytes | None, arrived: Iterable[bytes], removed: Iterable[bytes]) -> None:
        """A folder was looked at: files that came back into it, files that left it, and its hash (None: incomplete)."""
        for key in arrived:
            self._move(key, ELSEWHERE, folder)
        for key in removed:
            self._move(key, folder, ELSEWHERE)
        self.db.execute("UPDATE folders SET listing = ?, live = 1 WHERE n = ?", (listing, folder))

    def retire(self, is_seen: Callable[[int], bool]) -> None:
        """Folders that were not met: their files are elsewhere."""
        for (folder,) in self.db.execute("SELECT n FROM folders WHERE live").fetchall():
            if not is_seen(folder):
                for (key,) in self.db.execute("SELECT key FROM places WHERE folder = ?", (folder,)).fetchall():
                    self._move(key, folder, ELSEWHERE)
                self.db.execute("UPDATE folders SET listing = NULL, live = 0 WHERE n = ?", (folder,))

    def _move(self, key: bytes, from_: int, to: int) -> None:
        query = "SELECT outcome, reason, scan FROM places WHERE folder = ? AND key = ?"
        outcome, reason, scan = self.db.execute(query, (from_, key)).fetchone()
        doubled = self.db.execute(query, (to, key)).fetchone() is not None
        with self._recounted(self._ids([scan] if scan else [])):
            if doubled:
                self.db.execute("DELETE FROM places WHERE folder = ? AND key = ?", (from_, key))
            else:
                self.db.execute("UPDATE places SET folder = ? WHERE folder = ? AND key = ?", (to, from_, key))
        if scan is None:
            self.books.subtract(of_place(from_ != ELSEWHERE, outcome, reason))
            if not doubled:
                self.books.update(of_place(to != ELSEWHERE, outcome, reason))

    def _ids(self, scans: Iterable[int]) -> list[bytes]:
        return [self.db.execute("SELECT id FROM scans WHERE n = ?", (n,)).fetchone()[0] for n in scans]

    # The books --------------------------------------------------------------------------------------------------

    @contextmanager
    def _recounted(self, scans: list[bytes]) -> Iterator[None]:
        """These scans leave the books, are changed, and come in again."""
        for id_ in scans:
            self.books.subtract(self._counted(id_))
        yield
        for id_ in scans:
            self.books.update(self._counted(id_))

    def _counted(self, id_: bytes) -> Books:
        """What one scan adds to the books: it is in exactly one of the outcomes."""
        row = self.db.execute(
            "SELECT outcome, reason, frames, duplicates, kept, held, "
            "(SELECT count(*) FROM places WHERE scan = s.n AND folder > 0) FROM scans s WHERE id = ?",
            (id_,),
        ).fetchone()
        if row is None:
            return Counter()
        outcome, reason, frames, duplicates, kept_frames, held, copies = row
        counts = Counter({"scans": 1, "same-file": max(0, copies - 1), str(outcome or "waiting"): 1})
        counts.update({"frames": frames, "kept": kept_frames, "near-duplicate": duplicates})
        if outcome in ("quarantined", "refused", "failed"):
            counts[f"because {reason}"] += 1
        for why, count in json.loads(held).items():
            counts.update({"held": count, f"because {why}": count})
        return Counter({(copies > 0, name): count for name, count in counts.items()})

    # Plans and tasks --------------------------------------------------------------------------------------------

    def unplanned(self) -> Iterator[tuple[int, bytes, int]]:
        """(scan, study, planned) of scans that are there, have no outcome and are in no open task; failed ones too."""
        return self.db.execute(
            "SELECT s.n, s.study, s.planned FROM scans s LEFT JOIN tasks t ON t.n = s.task "
            "WHERE (s.outcome IS NULL OR s.outcome = 'failed') AND (s.task IS NULL OR t.done) "
            "AND EXISTS (SELECT 1 FROM places p WHERE p.scan = s.n AND p.folder > 0) ORDER BY s.n"
        )

    def add_plan(self, plan: Iterable[tuple[int, int, int]]) -> None:
        """Fix which scans make which shards: (scan, task from 0 on, unit). Names continue from the plans before."""
        (number,) = self.db.execute("SELECT coalesce(max(plan), 0) + 1 FROM tasks").fetchone()
        tasks: dict[int, int] = {}

        def rows() -> Iterator[tuple[int, int, int]]:
            for scan, task, unit in plan:
                if task not in tasks:
                    tasks[task] = self.add_task(f"{number:04d}-{task:06d}", number)
                yield tasks[task], unit, scan

        self.db.executemany("UPDATE scans SET task = ?, unit = ? WHERE n = ?", rows())

    def add_task(self, name: str, plan: int, done: bool = False) -> int:
        """The number of the task of this name, which is added where it is new."""
        self.db.execute("INSERT INTO tasks VALUES (NULL, ?, ?, ?) ON CONFLICT (name) DO NOTHING", (name, plan, done))
        (n,) = self.db.execute("SELECT n FROM tasks WHERE name = ?", (name,)).fetchone()
        return int(n)

    def open_tasks(self, part: tuple[int, int] = (0, 1)) -> list[tuple[int, str]]:
        """(number, name) of what is left to do, of every n-th task from the i-th on."""
        with self.reading() as db:
            rows = db.execute("SELECT n, name, done FROM tasks ORDER BY n").fetchall()
        return [(n, name) for n, name, done in rows[part[0] :: part[1]] if not done]

    def _reopen_lost(self) -> None:
        """A shard that was removed is made again: its task is open, its scans wait."""
        folder = self.corpus / FOLDER
        there = {path.name for path in folder.iterdir()} if folder.exists() else set()
        lost = [
            (n, task)
            for n, name, task in self.db.execute("SELECT n, name, task FROM shards").fetchall()
            if not {name, Path(name).with_suffix(".json").name} <= there
        ]
        for shard, task in lost:
            self.db.execute("DELETE FROM packed WHERE shard = ?", (shard,))
            self.db.execute("UPDATE tasks SET done = 0 WHERE n = ?", (task,))
            ids = [id_ for (id_,) in self.db.execute("SELECT id FROM scans WHERE task = ?", (task,)).fetchall()]
            with self._recounted(ids):
                self.db.execute("UPDATE scans SET outcome = NULL, frames = 0, duplicates = 0, kept = 0, held = '{}' "
                                "WHERE task = ?", (task,))  # fmt: skip

    def _finish(self, name: str, results: list[dict[str, Any]], shards: list[Any]) -> None:
        """What became of the scans of a task, and the shards that were written."""
        plan = int(name[:4]) if name[:4].isdigit() else 0
        task = self.add_task(name, plan)
        for result in results:
            with self._recounted([blob(result["id"])]):
                self._outcome(task, result)
        for shard in shards:
            self._shard(task, {"name": shard} if isinstance(shard, str) else shard)
        self.db.execute("UPDATE tasks SET done = 1 WHERE n = ?", (task,))

    def _outcome(self, task: int, result: Mapping[str, Any]) -> None:
        scan = self._scan(result)  # one that a hand wrote may be new
        held: Mapping[str, list[int]] = result.get("quarantined", {})
        figures: Mapping[str, float] = result.get("figures", {})
        self.db.execute(
            "UPDATE scans SET task = coalesce(task, ?), unit = coalesce(unit, n), outcome = ?, reason = ?, frames = ?, "
            "duplicates = ?, kept = ?, held = ?, notes = ?, brightness = ?, region = ?, changed = ? WHERE n = ?",
            (task, result.get("outcome", "read"), result.get("reason", ""), result.get("frames", 0),
             result.get("duplicates", 0), result.get("kept", 0),
             json.dumps({reason: len(frames) for reason, frames in held.items()}, sort_keys=True),
             " ".join(result.get("notes", ())), *(figures.get(name) for name in ("brightness", "region", "changed")),
             scan),
        )  # fmt: skip
        self._unhold(blob(result["id"]))
        if result.get("outcome") == "quarantined":
            self._hold(result["id"], WHOLE, result.get("reason", ""))
        for reason, frames in held.items():
            for frame in frames:
                self._hold(result["id"], frame, reason)

    def _unhold(self, scan: bytes) -> None:
        """Nothing of a scan is kept back for a person any more."""
        for (why,) in self.db.execute("SELECT reason FROM held WHERE scan = ?", (scan,)).fetchall():
            self.books[False, f"entry {why}"] -= 1
        self.db.execute("DELETE FROM held WHERE scan = ?", (scan,))

    def _hold(self, scan: str, frame: int, reason: str) -> None:
        row = (entry_of(scan, frame), blob(scan), frame, reason)
        query = "INSERT INTO held VALUES (?, ?, ?, ?) ON CONFLICT (entry) DO NOTHING"
        self.books[False, f"entry {reason}"] += self.db.execute(query, row).rowcount

    def _shard(self, task: int, shard: Mapping[str, Any]) -> None:
        """A shard and which frame of which scan each of its images is."""
        rows = shard.get("rows", [])
        images = sum(len(frames) for _, frames in rows) or image_count(self.corpus / FOLDER / shard["name"])
        self.db.execute("DELETE FROM packed WHERE shard IN (SELECT n FROM shards WHERE name = ?)", (shard["name"],))
        n = 2 * task + shard["name"].endswith(".rgb.npy")  # whatever the order in which tasks are done
        self.db.execute("INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?)", (n, shard["name"], task, images))
        first = 0
        for scan, frames in rows:
            (number,) = self.db.execute("SELECT n FROM scans WHERE id = ?", (blob(scan),)).fetchone()
            self.db.execute("INSERT INTO packed VALUES (?, ?, ?, ?)", (n, first, number, json.dumps(frames)))
            first += len(frames)

    # What is taken out again ------------------------------------------------------------------------------------

    def refuse_group(self, group: str, reason: str) -> None:
        """The scans of a patient are refused, whatever became of them; no task cleans them again."""
        ids = [id_ for (id_,) in self.db.execute("SELECT id FROM scans WHERE grp = ?", (blob(group),)).fetchall()]
        with self._recounted(ids):
            self.db.execute("UPDATE scans SET task = NULL, unit = NULL, outcome = 'refused', reason = ?, frames = 0, "
                            "duplicates = 0, kept = 0, held = '{}' WHERE grp = ?", (reason, blob(group)))  # fmt: skip
        for id_ in ids:
            self._unhold(id_)

    def replace_shard(self, name: str, new: str, kept: Sequence[int], reason: str) -> None:
        """A shard was written anew with these of its images; the frames of the others count as kept back."""
        row = self.db.execute("SELECT n, task FROM shards WHERE name = ?", (name,)).fetchone()
        if row is None:
            return  # a person released its image, or others put it here
        number, task = row
        packed = self.db.execute("SELECT s.id, p.frames FROM packed p JOIN scans s ON s.n = p.scan WHERE p.shard = ? "
                                 "ORDER BY p.first", (number,)).fetchall()  # fmt: skip
        frames = [(text(scan), frame) for scan, numbers in packed for frame in json.loads(numbers)]
        self.db.execute("DELETE FROM packed WHERE shard = ?", (number,))
        self.db.execute("DELETE FROM shards WHERE n = ?", (number,))
        stay = set(kept)
        for scan, frame in (one for row, one in enumerate(frames) if row not in stay):
            self._take_back(scan, frame, reason)
        if kept:
            left = [frames[row] for row in kept] if frames else []
            rows = [[scan, [frame for _, frame in group]] for scan, group in groupby(left, key=lambda one: one[0])]
            self._shard(task, {"name": new, "rows": rows})

    def _take_back(self, scan: str, frame: int, reason: str) -> None:
        with self._recounted([blob(scan)]):
            (held,) = self.db.execute("SELECT held FROM scans WHERE id = ?", (blob(scan),)).fetchone()
            counts = Counter(json.loads(held))
            counts[reason] += 1
            self.db.execute("UPDATE scans SET kept = kept - 1, held = ? WHERE id = ?",
                            (json.dumps(counts, sort_keys=True), blob(scan)))  # fmt: skip
        self._hold(scan, frame, reason)


def of_place(present: bool, outcome: str, reason: str) -> Books:
    """What a file that is no scan, or none that can be read, adds to the books."""
    if outcome == "archive":
        return Counter()
    if outcome == "none":
        return Counter({(present, "ignored"): 1})
    return Counter({(present, "scans"): 1, (present, outcome): 1, (present, f"because {reason}"): 1})
