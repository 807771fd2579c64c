"""The file of a corpus's ledger: its tables, its locks, the one writer and its many readers."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from usfmae.core.errors import CorpusError, ResourceError, TryLaterError
from usfmae.core.files import disk_full, locked

FORMAT = 2
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


class LedgerFile:
    """A SQLite file that one process changes at a time (`writing`) and pages read at any time (`reading`)."""

    def __init__(self, corpus: Path) -> None:
        self.corpus = corpus
        self.root = corpus / "ledger"
        self.file = self.root / "ledger.sqlite"
        self.shared = False  # several machines write to this corpus: SQLite then keeps no memory beside the file
        self.books: Books = Counter()
        self._written: Books = Counter()  # as the file has them
        self._db: sqlite3.Connection | None = None

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

    # What a run has left for the next writer; the ledger knows how to take it over.

    def _left_behind(self) -> bool:
        return False

    def _take_over(self) -> None:
        pass

    def _take_over_if_free(self) -> None:
        if not self._left_behind():
            return
        with self._lock("plan.lock") as free:
            if not free:
                return  # whoever writes now has taken it over
        with self.writing():
            pass


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
