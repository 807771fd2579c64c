"""The aggregator's memory: who is enrolled, what each round asked, what each site answered, what was committed.

SQLite in WAL mode with full synchronisation: a row that was written survives a power cut. A round is `open` until its
checkpoint is on disk, then `committed`; both happen in that order, so a crash between them repeats the merge and
nothing else. One writer (the aggregator), any number of readers; `site add` and `site revoke` write from outside.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from usfmae.core.errors import ConfigError, PolicyError, ResourceError, SourceError
from usfmae.core.federated.enrolment import EnrolledSite, Enrolment, SiteState, checked
from usfmae.core.federated.messages import VerdictCode
from usfmae.core.keys import normal_pem

RESTORE = "restore one backup of the whole directory: ledger, checkpoints and audit log"
_TABLES = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sites (
    site TEXT PRIMARY KEY, name TEXT NOT NULL, node_key TEXT NOT NULL UNIQUE, signing_key TEXT NOT NULL,
    capacity INTEGER NOT NULL, state TEXT NOT NULL, added REAL NOT NULL, revoked REAL, seen REAL,
    has_decoder INTEGER NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX IF NOT EXISTS active_names ON sites (name) WHERE state = 'active';
CREATE TABLE IF NOT EXISTS rounds (
    number INTEGER PRIMARY KEY, state TEXT NOT NULL, base TEXT NOT NULL, global_step INTEGER NOT NULL,
    steps INTEGER NOT NULL, opened REAL NOT NULL, committed REAL, result TEXT, summary TEXT);
CREATE TABLE IF NOT EXISTS replies (
    round INTEGER NOT NULL, site TEXT NOT NULL, verdict TEXT NOT NULL, detail TEXT NOT NULL DEFAULT '',
    content TEXT NOT NULL DEFAULT '', images INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0, norm REAL, weight REAL, loss_before REAL, loss_after REAL, seconds REAL,
    received REAL NOT NULL, PRIMARY KEY (round, site));
CREATE TABLE IF NOT EXISTS refusals (
    id INTEGER PRIMARY KEY, round INTEGER NOT NULL, site TEXT NOT NULL, verdict TEXT NOT NULL, detail TEXT NOT NULL,
    received REAL NOT NULL);
"""


class RoundState(StrEnum):
    OPEN = "open"
    COMMITTED = "committed"


@dataclass(frozen=True)
class Round:
    number: int
    state: RoundState
    base: str
    global_step: int
    steps: int
    opened: float
    committed: float | None = None
    result: str | None = None  # tensors_id of the merged encoder
    summary: Mapping[str, Any] | None = None


CLOSE = "close_round"  # fact: number of a round that the coordinator wants closed as soon as its quorum is there

# Columns that came after 0.1.0, and their tables.
_LATER = (
    ("sites", "confirmed INTEGER NOT NULL DEFAULT 0"),
    ("replies", "scale REAL"),
    ("replies", "against INTEGER NOT NULL DEFAULT 0"),
)


@dataclass(frozen=True)
class Verdict:
    """What the gate decided about one site's reply in one round."""

    round: int
    site: str
    verdict: VerdictCode
    detail: str = ""
    content: str = ""
    images: int = 0
    steps: int = 0
    bytes: int = 0
    norm: float | None = None
    weight: float | None = None  # share in the merge
    scale: float | None = None  # what the update was cut to, in its own length: 1 is all of it
    against: bool = False  # it pointed against others that agreed
    loss_before: float | None = None
    loss_after: float | None = None
    seconds: float | None = None
    received: float = 0.0


class _Cursor(sqlite3.Cursor):
    """Every read and write may meet a damaged page: one error that a person can act on."""

    def execute(self, *arguments: Any) -> _Cursor:
        with _damage_said(cast(_Connection, self.connection).path):
            return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> _Cursor:
        with _damage_said(cast(_Connection, self.connection).path):
            return super().executemany(*arguments)

    def fetchone(self) -> Any:
        with _damage_said(cast(_Connection, self.connection).path):
            return super().fetchone()

    def fetchall(self) -> list[Any]:
        with _damage_said(cast(_Connection, self.connection).path):
            return super().fetchall()


class _Connection(sqlite3.Connection):
    path: Path

    def execute(self, *arguments: Any) -> _Cursor:
        return self.cursor(_Cursor).execute(*arguments)

    def executemany(self, *arguments: Any) -> _Cursor:
        return self.cursor(_Cursor).executemany(*arguments)


@contextmanager
def _damage_said(path: Path) -> Iterator[None]:
    """SourceError in place of what SQLite says of a damaged file; a full or locked one is left to `_write`."""
    try:
        yield
    except (sqlite3.OperationalError, sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except sqlite3.DatabaseError as error:
        raise SourceError(f"ledger {path}", f"is damaged: {error}", RESTORE) from None


def connected(path: Path, read_only: bool = False, create: bool = False) -> sqlite3.Connection:
    """A connection whose every call raises SourceError where the file is damaged or no ledger."""
    place = f"file:{quote(str(path))}?mode=ro" if read_only else path
    db = sqlite3.connect(
        place, timeout=30, isolation_level=None, check_same_thread=False, factory=_Connection, uri=read_only
    )
    db.path = path
    db.row_factory = sqlite3.Row
    if not create and not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'facts'").fetchone():
        raise SourceError(f"ledger {path}", "holds no federation: it is empty or another file", RESTORE)
    return db


class Ledger:
    """Open with `Ledger(path)`; every method is one transaction."""

    def __init__(self, path: Path, create: bool = False) -> None:
        if not create and not path.exists():
            raise ConfigError(f"ledger {path}", "does not exist", "run 'usfmae-server init' first")
        self.path = path
        self._sites: tuple[tuple[int, int], dict[str, EnrolledSite]] | None = None  # as of a version of the database
        with _damage_said(path):
            self._db = connected(path, create=create)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_TABLES)
            for table, column in _LATER:
                if column.split()[0] not in {row["name"] for row in self._db.execute(f"PRAGMA table_info({table})")}:
                    self._db.execute(f"ALTER TABLE {table} ADD COLUMN {column}")

    def check(self) -> None:
        """SourceError where the file is damaged, or holds no campaign; reads all of it."""
        problems = [row[0] for row in self._db.execute("PRAGMA quick_check").fetchall()]
        if problems != ["ok"]:
            raise SourceError(f"ledger {self.path}", f"is damaged: {problems[0]}", RESTORE)
        if not self.fact("campaign"):
            raise SourceError(f"ledger {self.path}", "knows no campaign", RESTORE)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self._rollback()
            raise ResourceError(f"ledger {self.path}", str(error), "free disk space; nothing was lost") from None
        except BaseException:
            self._rollback()
            raise

    def _rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    # facts

    def fact(self, key: str, default: str = "") -> str:
        row = self._db.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
        return row["value"] if row else default

    def set_fact(self, key: str, value: str) -> None:
        with self._write() as db:
            db.execute(
                "INSERT INTO facts VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
            )

    def set_facts(self, facts: Mapping[str, str]) -> None:
        """Several facts at once: all or none."""
        sql = "INSERT INTO facts VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        with self._write() as db:
            db.executemany(sql, list(facts.items()))

    # sites

    def add_site(self, enrolment: Enrolment, confirmed: bool = False) -> None:
        """Enrol a site; `confirmed`: the coordinator vouches for its capacity.

        PolicyError where its key or name is taken, or its key was revoked: a new key is needed.
        """
        enrolment = checked(enrolment, f"enrolment of {enrolment.name!s:.80}")
        site = enrolment.site
        with self._write() as db:
            existing = _same_key(db, enrolment)
            if existing:
                why = "was revoked" if existing["state"] == SiteState.REVOKED else "is enrolled already"
                raise PolicyError(f"site {enrolment.name}", f"its key {why}", "make new keys with usfmae-client init")
            if db.execute("SELECT 1 FROM sites WHERE name = ? AND state = 'active'", (enrolment.name,)).fetchone():
                raise PolicyError(f"site {enrolment.name}", "the name is taken by another site", "choose another name")
            db.execute(
                "INSERT INTO sites (site, name, node_key, signing_key, capacity, state, added, confirmed)"
                " VALUES (?, ?, ?, ?, ?, 'active', ?, ?)",
                (
                    site,
                    enrolment.name,
                    enrolment.node_key,
                    enrolment.signing_key,
                    enrolment.capacity,
                    time.time(),
                    int(confirmed),
                ),
            )

    def confirm_capacity(self, name: str, capacity: int) -> str:
        """The coordinator vouches for the images of the active site of this name; returns its fingerprint."""
        with self._write() as db:
            row = db.execute("SELECT site FROM sites WHERE name = ? AND state = 'active'", (name,)).fetchone()
            if not row:
                raise PolicyError(f"site {name!r:.80}", "no active site has this name", "see 'usfmae-server site list'")
            db.execute("UPDATE sites SET capacity = ?, confirmed = 1 WHERE site = ?", (capacity, row["site"]))
            return str(row["site"])

    def revoke_site(self, name: str) -> str:
        """Revoke the active site of this name and return its fingerprint."""
        with self._write() as db:
            row = db.execute("SELECT site FROM sites WHERE name = ? AND state = 'active'", (name,)).fetchone()
            if not row:
                raise PolicyError(f"site {name!r:.80}", "no active site has this name", "see 'usfmae-server site list'")
            db.execute("UPDATE sites SET state = 'revoked', revoked = ? WHERE site = ?", (time.time(), row["site"]))
            return str(row["site"])

    def rotate_site(self, old: str, new: Enrolment) -> None:
        """New keys for an active site: the old key is revoked and the new one enrolled in one transaction."""
        new = checked(new, f"enrolment of {new.name!s:.80}")
        with self._write() as db:
            active = "SELECT name, has_decoder, confirmed FROM sites WHERE site = ? AND state = 'active'"
            row = db.execute(active, (old,)).fetchone()
            if not row or row["name"] != new.name:
                raise PolicyError(f"site {new.name}", "no active site has this name and key", "see 'site list'")
            if _same_key(db, new):
                raise PolicyError(f"site {new.name}", "its new key is known already", "make new keys: rotate again")
            db.execute("UPDATE sites SET state = 'revoked', revoked = ? WHERE site = ?", (time.time(), old))
            db.execute(
                "INSERT INTO sites"
                " (site, name, node_key, signing_key, capacity, state, added, has_decoder, confirmed)"
                " VALUES (?, ?, ?, ?, ?, 'active', ?, ?, ?)",
                (
                    new.site,
                    new.name,
                    new.node_key,
                    new.signing_key,
                    new.capacity,
                    time.time(),
                    row["has_decoder"],
                    row["confirmed"],
                ),
            )

    def sites(self) -> dict[str, EnrolledSite]:
        """Every site by fingerprint, active and revoked, in the order of fingerprints.

        The round loop asks many times a second: the table is read again only where anybody has written to the ledger.
        """
        version = self._db.execute("PRAGMA data_version").fetchone()[0], self._db.total_changes
        if self._sites is None or self._sites[0] != version:
            columns = "site, name, node_key, signing_key, capacity, state, has_decoder, seen, confirmed"
            rows = self._db.execute(f"SELECT {columns} FROM sites ORDER BY site").fetchall()  # noqa: S608
            self._sites = version, {row["site"]: _site(row) for row in rows}
        return dict(self._sites[1])

    def saw(self, sites: Iterator[str] | list[str] | set[str]) -> None:
        now = time.time()
        with self._write() as db:
            db.executemany("UPDATE sites SET seen = ? WHERE site = ?", [(now, site) for site in sites])

    def note_decoder(self, site: str, has: bool) -> None:
        with self._write() as db:
            db.execute("UPDATE sites SET has_decoder = ? WHERE site = ?", (int(has), site))

    # rounds

    def last_round(self, state: RoundState = RoundState.COMMITTED) -> Round | None:
        row = self._db.execute("SELECT * FROM rounds WHERE state = ? ORDER BY number DESC LIMIT 1", (state,)).fetchone()
        return _round(row) if row else None

    def rounds(self) -> list[Round]:
        return [_round(row) for row in self._db.execute("SELECT * FROM rounds ORDER BY number").fetchall()]

    def open_round(self, number: int, base: str, global_step: int, steps: int) -> Round:
        """The open round of this number: the one begun before a crash, or a new one."""
        with self._write() as db:
            db.execute(
                "INSERT OR IGNORE INTO rounds (number, state, base, global_step, steps, opened)"
                " VALUES (?, 'open', ?, ?, ?, ?)",
                (number, base, global_step, steps, time.time()),
            )
        opened = self.last_round(RoundState.OPEN)
        if opened is None or opened.number != number or opened.base != base:
            raise PolicyError(
                f"round {number}", "the ledger and the checkpoints disagree", "restore one backup of both"
            )
        return opened

    def commit_round(
        self, number: int, result: str, summary: Mapping[str, Any], final: list[Verdict], steps: int | None = None
    ) -> None:
        """The round's end: verdicts and result in one transaction, after the checkpoint is on disk.

        `steps`, where they are others than the round was opened with.
        """
        with self._write() as db:
            for verdict in final:
                _store(db, verdict)
            db.execute(
                "UPDATE rounds SET state = 'committed', committed = ?, result = ?, summary = ?,"
                " steps = coalesce(?, steps) WHERE number = ?",
                (time.time(), result, json.dumps(summary, sort_keys=True), steps, number),
            )

    def give_up_round(self) -> None:
        """Drop a round that was never committed, with its verdicts: its campaign has ended."""
        with self._write() as db:
            db.execute("DELETE FROM replies WHERE round IN (SELECT number FROM rounds WHERE state = 'open')")
            db.execute("DELETE FROM rounds WHERE state = 'open'")

    # verdicts

    def record(self, verdict: Verdict) -> None:
        """A site's verdict in a round, replacing an earlier one."""
        with self._write() as db:
            _store(db, verdict)

    def withdraw_verdict(self, number: int, site: str) -> None:
        """Forget a verdict of an open round, so that the site is asked again."""
        with self._write() as db:
            db.execute("DELETE FROM replies WHERE round = ? AND site = ?", (number, site))

    def refuse(self, number: int, site: str, verdict: str, detail: str) -> None:
        """A reply that is refused and does not count as its site's answer: unknown site, other round, second reply."""
        with self._write() as db:
            db.execute(
                "INSERT INTO refusals (round, site, verdict, detail, received) VALUES (?, ?, ?, ?, ?)",
                (number, site, verdict, detail[:300], time.time()),
            )

    def verdicts(self, number: int) -> dict[str, Verdict]:
        """The verdicts of a round by site, in the order of fingerprints."""
        rows = self._db.execute("SELECT * FROM replies WHERE round = ? ORDER BY site", (number,)).fetchall()
        return {row["site"]: _verdict(row) for row in rows}

    def seen_content(self, site: str, content: str, number: int) -> bool:
        """Whether this very update was admitted from the site in another round."""
        query = "SELECT 1 FROM replies WHERE site = ? AND content = ? AND round != ? AND verdict = 'admitted'"
        return self._db.execute(query, (site, content, number)).fetchone() is not None

    def lowest_loss(self, site: str, first: int) -> float | None:
        """The least held-out loss after training that a site reached in its admitted rounds from round `first` on."""
        query = "SELECT min(loss_after) AS loss FROM replies WHERE site = ? AND verdict = 'admitted' AND round >= ?"
        row = self._db.execute(query, (site, first)).fetchone()
        return None if row["loss"] is None else float(row["loss"])

    def lengths(self, before: int, rounds: int = 3) -> list[tuple[int, float]]:
        """Round and merged length of each update admitted in the rounds just before this one."""
        query = (
            "SELECT round, norm * coalesce(scale, 1) AS length FROM replies"
            " WHERE verdict = 'admitted' AND norm IS NOT NULL AND round < ? AND round >= ? ORDER BY round, site"
        )
        return [(row["round"], row["length"]) for row in self._db.execute(query, (before, before - rounds)).fetchall()]

    def silent(self, before: int, rounds: int = 2) -> set[str]:
        """Sites enrolled all along that answered in none of the last `rounds` rounds; none before there were so many."""
        last = [r for r in self.rounds() if r.number < before and r.steps and (r.summary or {}).get("sites")][-rounds:]
        if len(last) < rounds:
            return set()
        query = "SELECT site FROM sites WHERE state = 'active' AND added <= ?"
        enrolled = {row["site"] for row in self._db.execute(query, (last[0].opened,)).fetchall()}
        return enrolled - {site for one in last for site in self.verdicts(one.number)}

    def strikes(self, before: int, rounds: int) -> dict[str, int]:
        """In how many of the rounds just before this one a site's update pointed against the others."""
        query = "SELECT site, sum(against) AS times FROM replies WHERE round < ? AND round >= ? GROUP BY site"
        return {row["site"]: row["times"] for row in self._db.execute(query, (before, before - rounds)).fetchall()}

    def refusals(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self._db.execute("SELECT * FROM refusals ORDER BY id").fetchall()]


def _same_key(db: sqlite3.Connection, enrolment: Enrolment) -> sqlite3.Row | None:
    """The site that has one of these keys, however an older version has spelt it."""
    rows = db.execute("SELECT site, node_key, state FROM sites").fetchall()
    return next(
        (row for row in rows if row["site"] == enrolment.site or normal_pem(row["node_key"]) == enrolment.node_key),
        None,
    )


def _round(row: sqlite3.Row) -> Round:
    values = dict(row)
    values["summary"] = json.loads(values["summary"]) if values["summary"] else None
    return Round(**{**values, "state": RoundState(values["state"])})


def _site(row: sqlite3.Row) -> EnrolledSite:
    flags = {name: bool(row[name]) for name in ("has_decoder", "confirmed")}
    return EnrolledSite(**{**dict(row), **flags, "state": SiteState(row["state"])})


def _verdict(row: sqlite3.Row) -> Verdict:
    return Verdict(**{**dict(row), "verdict": VerdictCode(row["verdict"]), "against": bool(row["against"])})


def _store(db: sqlite3.Connection, verdict: Verdict) -> None:
    values = {**vars(verdict), "received": verdict.received or time.time(), "detail": verdict.detail[:300]}
    names = ", ".join(values)
    marks = ", ".join(f":{name}" for name in values)
    db.execute(f"INSERT OR REPLACE INTO replies ({names}) VALUES ({marks})", values)  # noqa: S608
