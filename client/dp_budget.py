"""What trainings with differential privacy have spent of this site's budget, over all campaigns: SITE/dp.sqlite.

A round is written down, whole, before its first step: a training that is killed has spent what it was going to spend, and
goes on without spending again, since it draws the same samples and the same noise. Epsilon is that of all rows together, by
Google's dp-accounting (privacy loss distributions; an upper bound), for one patient more or less.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usfmae.client.site import Site
from usfmae.core.config.train import DpSettings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.errors import PolicyError
from usfmae.core.federated.messages import TrainRequest, task_id
from usfmae.core.types import content_id

FILE = "dp.sqlite"
LEAST_NOISE = 0.1  # less protects nobody, and its losses are too many numbers for the accountant


@dataclass(frozen=True)
class Spending:
    """Steps of one round: Gaussian mechanisms on Poisson samples of the patients."""

    task: str  # what was trained; the same one is not counted twice
    noise: float  # standard deviation of the noise, in lengths that a patient's gradient is cut to
    share: float  # chance of a patient to be in a step
    steps: int


class Budget:
    """The ledger of a site, which may spend `epsilon` at `delta`."""

    def __init__(self, path: Path, epsilon: float, delta: float) -> None:
        self.path, self.most, self.delta = path, epsilon, delta

    def spend(self, spending: Spending) -> float:
        """Write a round down, unless it stands there already; the epsilon of all that stands there now.

        PolicyError, and nothing is written, where that is more than the budget.
        """
        with self._open() as database:
            rows = list(_rows(database))
            if spending.task in {row.task for row in rows}:
                return epsilon(rows, self.delta)
            after = epsilon([*rows, spending], self.delta)
            if after > self.most:
                why = f"would make epsilon {after:.2f} (delta {self.delta:g}), this site allows {self.most:g}"
                raise PolicyError("privacy budget", why, "privacy.epsilon in site.yaml is for all campaigns together")
            values = (spending.task, spending.noise, spending.share, spending.steps)
            database.execute("INSERT INTO spent VALUES (?, ?, ?, ?)", values)
            database.commit()
        return after

    def spent(self) -> float:
        """Epsilon of all that was trained here."""
        with self._open() as database:
            return epsilon(_rows(database), self.delta)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as database:
                database.execute("PRAGMA synchronous=FULL")
                database.execute(
                    "CREATE TABLE IF NOT EXISTS spent (task TEXT PRIMARY KEY, noise REAL, share REAL, steps INTEGER)"
                )
                database.execute("BEGIN IMMEDIATE")
                yield database
        except sqlite3.DatabaseError as error:  # never begun anew: what was spent is spent
            do = "restore it from a backup; where there is none, this site takes no further part with these patients"
            raise PolicyError(f"privacy budget {self.path}", f"cannot be read: {error}", do) from None


def of(site: Site) -> Budget:
    """The budget of a site. A site that sets none keeps the ledger all the same, and refuses nothing."""
    floor = site.settings.privacy
    return Budget(site.root / FILE, floor.epsilon or math.inf, floor.delta)


def task_of(request: TrainRequest, corpus: Corpus) -> str:
    """What a training computes: the same after a crash, another for every other request and every other image."""
    return content_id(task_id(request), corpus.fingerprint)


def seed(own: int, task: str) -> int:
    """The seed of a round's samples and noise, from the site's own.

    Noise that came twice could be taken away: the difference of two updates from nearly the same encoder would show it.
    """
    return int.from_bytes(hashlib.sha256(f"usfmae dp {own} {task}".encode()).digest()[:16], "big")


def untold(site: Site, dp: DpSettings) -> dict[str, Any]:
    """What a reply says in place of figures of the images, and what this site's own sheet says of the budget."""
    budget = of(site)
    told = {"epsilon": budget.spent(), "delta": budget.delta, "limit": site.settings.privacy.epsilon}
    figures = {"images": site.settings.capacity, "loss_before": 0.0, "loss_after": 0.0}
    return {**figures, "dp": {**told, **dp.model_dump()}}


def _rows(database: sqlite3.Connection) -> Iterator[Spending]:
    return (Spending(*row) for row in database.execute("SELECT task, noise, share, steps FROM spent ORDER BY rowid"))


def epsilon(spendings: Iterable[Spending], delta: float) -> float:
    """What all of these tell of one patient at most. PolicyError where dp-accounting is not installed."""
    try:
        from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
        from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
    except ImportError:
        do = "run: pip install 'usfmae[dp]'"
        raise PolicyError("differential privacy", "needs dp-accounting, which is not installed", do) from None
    steps: dict[tuple[float, float], int] = {}
    for one in spendings:
        if one.noise < LEAST_NOISE:
            return math.inf
        steps[one.noise, one.share] = steps.get((one.noise, one.share), 0) + one.steps
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    for (noise, share), count in steps.items():
        accountant.compose(PoissonSampledDpEvent(share, GaussianDpEvent(noise)), count)
    return float(accountant.get_epsilon(delta)) if steps else 0.0
