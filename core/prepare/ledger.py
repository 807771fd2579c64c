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
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usfmae.core.corpus.shard import FOLDER, image_count
from usfmae.core.errors import CorpusError, ResourceError, TryLaterError, UsageError
from usfmae.core.files import disk_full, locked, write_atomic
from usfmae.core.types import Scan, Trail, content_id

FORMAT = 2
ELSEWHERE = 0  # number of the folder of files that were found once and are not there now
UNFORESEEN = "unforeseen-error"  # reason of what a bug kept from being read: it is tried again
UNBALANCED = "not-balanced"  # reason of a scan whose frames are not all accounted for: it is tried again
WHOLE = -1  # in place of a frame's number: the whole scan
BUSY_SECONDS = 60.0  # for which a reader waits for a writer on another machine
PAGE_CACHE_KIB = 65536

SCHEMA = """
CREATE TABLE folders (
    n INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, parent INTEGER NOT NULL,
    listing BLOB,                           -- keyed hash of names, sizes and times; NULL: look at each file
    archive INTEGER NOT NULL, live INTEGER NOT NULL);
CREATE INDEX archives ON folders (parent) WHERE archive;
CREATE TABLE places (                       -- one row a file; key: keyed hash of its path, size and time
    folder INTEGER NOT NULL, key BLOB NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL,
    entry TEXT NOT NULL, scan INTEGER, PRIMARY KEY (folder, key)) WITHOUT ROWID;
CREATE INDEX copies ON places (scan) WHERE scan IS NOT NULL;
CREATE TABLE scans (
    n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, kind TEXT NOT NULL, grp BLOB NOT NULL, dataset TEXT NOT NULL,
    study BLOB NOT NULL, planned INTEGER NOT NULL, format TEXT NOT NULL, device TEXT NOT NULL,
    task INTEGER, unit INTEGER, outcome TEXT, reason TEXT NOT NULL DEFAULT '',
    frames INTEGER NOT NULL DEFAULT 0, duplicates INTEGER NOT NULL DEFAULT 0, kept INTEGER NOT NULL DEFAULT 0,
    held TEXT NOT NULL DEFAULT '{}', notes TEXT NOT NULL DEFAULT '', brightness REAL, region REAL, changed REAL);
CREATE INDEX units ON scans (task, unit) WHERE task IS NOT NULL;
CREATE INDEX open_scans ON scans (n) WHERE outcome IS NULL OR outcome = 'failed';
CREATE TABLE tasks (n INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, plan INTEGER NOT NULL, done INTEGER NOT NULL);
CREATE TABLE shards (
    n INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, task INTEGER NOT NULL, images INTEGER NOT NULL);
CREATE TABLE packed (                       -- images `first`, `first` + 1, ... of a shard are these frames of a scan
    shard INTEGER NOT NULL, first INTEGER NOT NULL, scan INTEGER NOT NULL, frames TEXT NOT NULL,
    PRIMARY KEY (shard, first)) WITHOUT ROWID;
CREATE TABLE held (entry TEXT PRIMARY KEY, scan BLOB NOT NULL, frame INTEGER NOT NULL, reason TEXT NOT NULL)
    WITHOUT ROWID;
CREATE INDEX held_reasons ON held (reason, scan, frame);
CREATE INDEX held_scans ON held (scan);
CREATE TABLE books (present INTEGER NOT NULL, name TEXT NOT NULL, value INTEGER NOT NULL, PRIMARY KEY (present, name))
    WITHOUT ROWID;
CREATE VIEW present AS SELECT * FROM scans s            -- scans with an outcome, in the folders of the last run
    WHERE outcome IS NOT NULL AND EXISTS (SELECT 1 FROM places p WHERE p.scan = s.n AND p.folder > 0);
"""

Books = Counter[tuple[bool, str]]  # (in the folders of the last run, name of a count) -> count


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

    def at(self, path: Path, member: str = "") -> Scan:
        return Scan(path, self.kind, Trail(self.id), member, self.group, self.dataset)


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


class CorpusLedger:
    """The ledger of one corpus."""

    def __init__(self, corpus: Path) -> None:
        self.corpus = corpus
        self.root = corpus / "ledger"
        self.file = self.root / "ledger.sqlite"
        self.shared = False  # several machines write to this corpus: SQLite then keeps no memory beside the file
        self.books: Books = Counter()
        self._written: Books = Counter()  # as the file has them
        self._db: sqlite3.Connection | None = None

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

    # Locks and connections ------------------------------------------------------------------------------------

    @contextmanager
    def working(self, shared: bool = False) -> Iterator[None]:
        """One run at a time, or several parts of one run. TryLaterError where another run is at work.

        Pieces of files that a killed run left are removed.
        """
        self.shared = shared
        with self._lock("work.lock", shared=shared) as free:
            if not free:
                raise TryLaterError(f"corpus {self.corpus}", "another run is writing to it", "wait for it")
            if not shared:
                for partial in self.corpus.rglob(".*.partial"):
                    partial.unlink(missing_ok=True)
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The one writer of the ledger, after waiting for any other; what was left behind is taken over first.

        Everything since the last `save` is undone where the block raises.
        """
        with self._lock("plan.lock", wait=True), sqlite_errors(self.file):
            self._db = self._connect()
            try:
                self._db.execute("BEGIN IMMEDIATE")
                self.books = Counter({(bool(p), name): value for p, name, value in self._db.execute(
                    "SELECT present, name, value FROM books")})  # fmt: skip
                self._written = Counter(self.books)
                self._take_over()
                yield
                self.save()
                self._db.execute("COMMIT")
            finally:
                self._db.close()  # rolls back what was not committed
                self._db = None

    def save(self) -> None:
        """All that was written so far is on disk, the books with it."""
        changed = [(*key, value) for key, value in self.books.items() if self._written.get(key, 0) != value]
        self.db.executemany("INSERT OR REPLACE INTO books VALUES (?, ?, ?)", changed)
        self.db.execute("DELETE FROM books WHERE value = 0")
        self._written = Counter(self.books)
        self.db.execute("COMMIT")
        self.db.execute("BEGIN IMMEDIATE")

    @property
    def db(self) -> sqlite3.Connection:
        assert self._db is not None, "the ledger is changed inside `writing` only"
        return self._db

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to ask; a corpus without a ledger gives an empty one."""
        if self._db is not None:
            yield self._db
            return
        self._take_over_if_free()
        if not self.file.exists():
            with memory_ledger() as empty:
                yield empty
            return
        if self.shared:
            with self.writing():
                yield self.db
            return
        with sqlite_errors(self.file):
            db = sqlite3.connect(f"{self.file.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)
            try:
                yield db
            finally:
                db.close()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.file, timeout=BUSY_SECONDS, isolation_level=None)
        if self.shared:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute(f"PRAGMA cache_size = -{PAGE_CACHE_KIB}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        (format_,) = db.execute("PRAGMA user_version").fetchone()
        if format_ == 0:
            db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
        elif format_ != FORMAT:
            db.close()
            raise CorpusError(f"ledger {self.file}", f"has format {format_}, this version reads {FORMAT}", "update")
        return db

    @contextmanager
    def _lock(self, name: str, wait: bool = False, shared: bool = False) -> Iterator[bool]:
        """Yields whether the lock was free. ResourceError where the corpus cannot be written to."""
        with ExitStack() as stack:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                free = stack.enter_context(locked(self.root / name, wait=wait, shared=shared))
            except OSError as error:
                why = error.strerror or str(error)
                raise ResourceError(f"corpus {self.corpus}", why, "give a folder to write into") from None
            yield free

    # What lies beside the ledger --------------------------------------------------------------------------------

    def _left_behind(self) -> bool:
        """Whether there are outcomes of tasks, or a ledger of version 0.1, that are not in the ledger yet."""
        from usfmae.core.prepare import takeover

        return takeover.is_there(self.root) or any((self.root / "tasks").glob("*.json"))

    def _take_over_if_free(self) -> None:
        if not self._left_behind():
            return
        with self._lock("plan.lock") as free:
            if not free:
                return  # whoever writes now has taken it over
        with self.writing():
            pass

    def _take_over(self) -> None:
        from usfmae.core.prepare import takeover

        if takeover.is_there(self.root):
            takeover.take_over(self)
            self.save()
            takeover.remove(self.root)
        self.absorb()

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
        outcome, reason, frames, duplicates, kept, held, copies = row
        counts = Counter({"scans": 1, "same-file": max(0, copies - 1), str(outcome or "waiting"): 1})
        counts.update({"frames": frames, "kept": kept, "near-duplicate": duplicates})
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

    def scans_of(self, task: int) -> list[KnownScan]:
        """The scans of a task, unit by unit in the order of the plan."""
        with self.reading() as db:
            return [
                known(r)
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
        for (why,) in self.db.execute("SELECT reason FROM held WHERE scan = ?", (blob(result["id"]),)).fetchall():
            self.books[False, f"entry {why}"] -= 1
        self.db.execute("DELETE FROM held WHERE scan = ?", (blob(result["id"]),))
        if result.get("outcome") == "quarantined":
            self._hold(result["id"], WHOLE, result.get("reason", ""))
        for reason, frames in held.items():
            for frame in frames:
                self._hold(result["id"], frame, reason)

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

    # What others ask --------------------------------------------------------------------------------------------

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
        return known(row) if row else None

    def together(self, id_: str) -> list[KnownScan]:
        """A scan and those it was cleaned together with, in order; empty where it is unknown."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT n, id, kind, grp, dataset, planned, unit FROM scans WHERE (task, unit) = (SELECT task, unit FROM scans WHERE id = ?) "
                "ORDER BY n", (blob(id_),),
            ).fetchall()  # fmt: skip
        alone = self.scan(id_)
        return [known(row) for row in rows] or ([alone] if alone else [])

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


def known(row: tuple[Any, ...]) -> KnownScan:
    n, id_, kind, group, dataset, planned, unit = row
    return KnownScan(n, text(id_), kind, text(group), dataset, planned, unit or 0)


def of_place(present: bool, outcome: str, reason: str) -> Books:
    """What a file that is no scan, or none that can be read, adds to the books."""
    if outcome == "archive":
        return Counter()
    if outcome == "none":
        return Counter({(present, "ignored"): 1})
    return Counter({(present, "scans"): 1, (present, outcome): 1, (present, f"because {reason}"): 1})


@contextmanager
def memory_ledger() -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(":memory:")
    try:
        db.executescript(SCHEMA)
        yield db
    finally:
        db.close()


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. CorpusError where the file is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise CorpusError(f"ledger {path}", "is damaged", "restore it, or prepare into a new --corpus")
    return value


@contextmanager
def sqlite_errors(file: Path) -> Iterator[None]:
    """What SQLite says of the machine or the file, in this program's words."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        if name in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_TRUNCATE"):
            raise disk_full(file) from None
        if name in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
            raise CorpusError(f"ledger {file}", "is damaged", "restore it, or prepare into a new --corpus") from None
        if name == "SQLITE_BUSY":
            raise TryLaterError(f"ledger {file}", "another program is writing to it", "wait for it") from None
        if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
            raise ResourceError(f"ledger {file}", str(error), "see that its folder can be written to") from None
        raise
