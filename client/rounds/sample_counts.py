"""How often training has drawn each image of this site, so that new and old ones are mixed by a stated ratio.

SQLite at the site, by the image's id under the site's secret; it never leaves. A round's draws follow from its recipe,
so they are counted when the round is done, once: a repeated count of the same round changes nothing.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.federated.replay import with_new

_TABLES = """
CREATE TABLE IF NOT EXISTS uses (id TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rounds (name TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class SampleCounts:
    """The counts in one file; each method is one transaction."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, ids: Iterable[str]) -> Positions:
        """How often each image was drawn: (N,)."""
        counts: dict[str, int] = {}
        if self.path.exists():
            with closing(self._open()) as db:
                counts = dict(db.execute("SELECT id, count FROM uses").fetchall())
        return np.array([counts.get(id_, 0) for id_ in ids], np.int64)

    def mixed(self, corpus: Corpus, own: Positions, new_share: float, repeats: int) -> Positions:
        """The site's images with new ones to their share; `repeats`: most often that a new one is drawn in a round."""
        return with_new(own, self.of(corpus.ids[p] for p in own), new_share, repeats) if new_share else own

    def add(self, name: str, drawn: Iterable[str]) -> bool:
        """Count a round's draws; False where the round called `name` was counted before."""
        with closing(self._open()) as db, db:
            if db.execute("INSERT OR IGNORE INTO rounds VALUES (?)", (name,)).rowcount == 0:
                return False
            db.executemany(
                "INSERT INTO uses VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET count = count + excluded.count",
                list(Counter(drawn).items()),
            )
        return True

    def _open(self) -> sqlite3.Connection:
        """A damaged file is set aside and counting starts anew: every image then counts as new."""
        try:
            return self._connected()
        except sqlite3.OperationalError:  # locked, or a full disk: the file is sound
            raise
        except sqlite3.DatabaseError:
            self.path.replace(self.path.with_suffix(".damaged"))
            return self._connected()

    def _connected(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=30)
        try:
            db.executescript(_TABLES)
            if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("damaged")
        except sqlite3.Error:
            db.close()
            raise
        return db


def parted(corpus: Corpus, public: Sequence[str]) -> tuple[Positions, Positions]:
    """Positions of the site's own images and of those in shards with the checksums `public`."""
    sums, counts = [i.sha256 for i in corpus.shards], [i.shard.count for i in corpus.shards]
    replayed = np.repeat(np.isin(sums, list(public)), counts)
    return np.flatnonzero(~replayed), np.flatnonzero(replayed)
