"""What the machine kept back, and a person's decision on it: release into the corpus, or drop.

Nothing in quarantine is copied: an entry is a scan's HMAC, a frame's number and a reason. The picture is read from
the source again when somebody looks, and never stored. Decisions lie in `SITE/decisions.sqlite`.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from usfmae.client.review.frame_preview import FramePreview, image_id, preview_frame
from usfmae.client.review.scan_lookup import scan_of
from usfmae.client.site import Site
from usfmae.core import account
from usfmae.core.config import ModelSettings, Settings
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.errors import UsageError
from usfmae.core.prepare.ledger import CorpusLedger
from usfmae.core.prepare.ledger_queries import WHOLE, entry_of, text

Decision = Literal["released", "dropped"]
FILE = "decisions.sqlite"
OLD_FILE = "decisions.jsonl"  # of version 0.1
SCHEMA = """CREATE TABLE IF NOT EXISTS decisions (entry TEXT PRIMARY KEY, decision TEXT NOT NULL, reason TEXT NOT NULL,
    by TEXT NOT NULL, time REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS decided ON decisions (time);"""
COUNTS = ("scans", "frames", "kept", "refused", "failed")


@dataclass(frozen=True)
class QuarantinedFrame:
    """One entry of the quarantine."""

    scan: str
    index: int  # frame, or WHOLE
    reason: str

    @property
    def id(self) -> str:
        return entry_of(self.scan, self.index)


@dataclass
class Intake:
    """What came in so far, by the books of the corpus' ledger."""

    corpus: Path | None = None
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)  # why scans and frames are not in the corpus
    held: Counter[str] = field(default_factory=Counter)  # reason -> entries of the quarantine, decided ones too

    def refresh(self, corpus: Path) -> Intake:
        ledger = CorpusLedger(corpus)
        books = ledger.counts()
        self.corpus, self.held = corpus, ledger.held_by_reason()
        self.counts = Counter({name: books[name] for name in COUNTS})
        self.counts.update(duplicates=books["near-duplicate"], quarantined=books["quarantined"] + books["held"])
        self.reasons = Counter({name[8:]: count for name, count in books.items() if name.startswith("because ")})
        return self


@contextmanager
def deciding(site: Site, write: bool = False) -> Iterator[sqlite3.Connection]:
    """The decisions of a site; those of version 0.1 are taken over once. Written in one transaction."""
    file, old = site.root / FILE, site.root / OLD_FILE
    if not write and not file.exists() and not old.exists():
        db = sqlite3.connect(":memory:")
    else:
        file.touch(mode=0o600)
        db = sqlite3.connect(file, timeout=60, isolation_level=None)
    try:
        db.executescript(SCHEMA)
        db.execute("BEGIN IMMEDIATE" if write or old.exists() else "BEGIN")
        if old.exists():
            db.executemany("INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?)", _old_decisions(old))
        yield db
        db.execute("COMMIT")
        old.unlink(missing_ok=True)
    finally:
        db.close()


def _old_decisions(file: Path) -> Iterator[tuple[Any, ...]]:
    for line in file.read_text().splitlines():
        with suppress(ValueError):  # torn by a crash: not decided
            entry = json.loads(line)
            yield tuple(entry.get(name, "") for name in ("id", "decision", "reason", "by", "time"))


def decisions(site: Site, last: int | None = None) -> dict[str, dict[str, Any]]:
    """Entry id -> the decision on it; the `last` ones, newest first."""
    names = ("id", "decision", "reason", "by", "time")
    with deciding(site) as db:
        query = "SELECT entry, decision, reason, by, time FROM decisions ORDER BY time DESC LIMIT ?"
        rows = db.execute(query, (-1 if last is None else last,)).fetchall()
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def decision_on(site: Site, entry: str) -> dict[str, Any] | None:
    with deciding(site) as db:
        row = db.execute("SELECT decision, reason, by, time FROM decisions WHERE entry = ?", (entry,)).fetchone()
    return dict(zip(("decision", "reason", "by", "time"), row, strict=True)) if row else None


def is_decided(db: sqlite3.Connection, entry: str) -> bool:
    return db.execute("SELECT 1 FROM decisions WHERE entry = ?", (entry,)).fetchone() is not None


def waiting(site: Site, intake: Intake, reason: str = "", limit: int | None = None) -> list[QuarantinedFrame]:
    """Entries nobody has decided on, by reason; of one reason, and no more than `limit`, where these are given."""
    frames: list[QuarantinedFrame] = []
    if intake.corpus is None:
        return frames
    with deciding(site) as db, CorpusLedger(intake.corpus).reading() as ledger:
        if reason:
            query = "SELECT entry, scan, frame, reason FROM held WHERE reason = ? ORDER BY scan, frame"
            rows = ledger.execute(query, (reason,))
        else:
            rows = ledger.execute("SELECT entry, scan, frame, reason FROM held ORDER BY reason, scan, frame")
        for entry, scan, frame, why in rows:
            if not is_decided(db, entry):
                frames.append(QuarantinedFrame(text(scan), frame, why))
            if limit is not None and len(frames) >= limit:
                break
    return frames


def waiting_by_reason(site: Site, intake: Intake) -> Counter[str]:
    """Reason -> entries nobody has decided on: all, less the decided ones, which are few."""
    left = Counter(intake.held)
    if intake.corpus is None:
        return left
    with deciding(site) as db, CorpusLedger(intake.corpus).reading() as ledger:
        for (entry,) in db.execute("SELECT entry FROM decisions"):
            row = ledger.execute("SELECT reason FROM held WHERE entry = ?", (entry,)).fetchone()
            left.update({row[0]: -1} if row else {})
    return +left


def picture(site: Site, held: QuarantinedFrame) -> FramePreview:
    """The frame before and after. SourceError where the source no longer has it or it cannot be decoded."""
    own = site.settings
    settings = Settings(read=own.read, clean=own.clean, model=ModelSettings(image_size=own.image_size))
    return preview_frame(scan_of(site, held.scan), 0 if held.index == WHOLE else held.index, settings)


def release(site: Site, held: QuarantinedFrame, by: str = "") -> None:
    """Put a frame into the corpus although the machine doubted it. UsageError where that cannot be."""
    if held.index == WHOLE:
        raise UsageError("this scan", "could not be read at all", "mend it at the source, or drop it")
    _undecided(site, held)
    looked = picture(site, held)
    if not looked.packed:
        raise UsageError("this frame", f"gives nothing to keep ({looked.why_not})", "drop it")
    pixels = np.frombuffer(looked.packed, np.uint8).reshape(looked.shape)
    item = PackedImage(pixels, image_id(held.scan, held.index), scan_of(site, held.scan).group)
    write_shard(site.corpus, f"released-{held.id}", [item])
    _decide(site, held, "released", by)


def drop(site: Site, held: QuarantinedFrame, by: str = "") -> None:
    """Leave a frame or scan out for good."""
    _undecided(site, held)
    _decide(site, held, "dropped", by)


def _undecided(site: Site, held: QuarantinedFrame) -> None:
    decision = decision_on(site, held.id)
    if decision:
        raise UsageError("this entry", f"was {decision['decision']} already", "nothing to do")


def _decide(site: Site, held: QuarantinedFrame, decision: Decision, by: str) -> None:
    by = by or account.person()
    with deciding(site, write=True) as db:
        row = (held.id, decision, held.reason, by, time.time())
        db.execute("INSERT INTO decisions VALUES (?, ?, ?, ?, ?)", row)
    site.note(f"quarantine.{decision}", entry=held.id, reason=held.reason, by=by)


def find(intake: Intake, id_: str) -> QuarantinedFrame:
    """The entry of this id. UsageError where there is none."""
    held = CorpusLedger(intake.corpus).held(id_) if intake.corpus else None
    if held is None:
        raise UsageError(f"quarantine entry {id_!r:.40}", "does not exist", "see the list")
    return QuarantinedFrame(held.scan, held.frame, held.reason)
