"""What the coordinator's page shows, read from the ledger in a handful of queries."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from usfmae.core.config.coordinator import CoordinatorSettings, RoundSettings
from usfmae.core.errors import ConfigError
from usfmae.core.federated.messages import VerdictCode
from usfmae.core.web.templating import duration
from usfmae.server.layout import Layout
from usfmae.server.ledger import Verdict, connected
from usfmae.server.rounds import quorum

CONNECTED_SECONDS = 180.0  # a site that spoke this recently is shown as connected
LATEST = 6  # rounds on the overview
MATRIX = 24  # rounds in the table of sites and rounds
CURVES = 60  # rounds of which the curves by site are drawn
RECENT = 20  # rounds back from which replies that were not admitted are listed there


@contextmanager
def reading(home: Layout) -> Iterator[sqlite3.Connection]:
    """The ledger, read only. ConfigError where there is none."""
    try:
        db = connected(home.ledger, read_only=True)
    except sqlite3.OperationalError:
        raise ConfigError(f"ledger {home.ledger}", "does not exist", "run 'usfmae-server init' first") from None
    try:
        yield db
    finally:
        db.close()


def rows(db: sqlite3.Connection, query: str, *values: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in db.execute(query, values).fetchall()]


@dataclass
class Sums:
    """What a site gave in the rounds so far."""

    replies: int = 0
    admitted: int = 0
    bytes: int = 0
    last_round: int = 0

    def add(self, row: Mapping[str, Any]) -> Sums:
        last = max(self.last_round, row["last_round"])
        return Sums(self.replies + row["replies"], self.admitted + row["admitted"], self.bytes + row["bytes"], last)


class History:
    """Rounds and sums by site. A committed round never changes, so it is read once: 500 rounds cost what 5 do."""

    def __init__(self) -> None:
        self.closed: list[dict[str, Any]] = []  # oldest first
        self.sums: dict[str, Sums] = {}
        self.verdicts: dict[str, int] = {}
        self._lock = threading.Lock()

    def read(self, db: sqlite3.Connection) -> tuple[list[dict[str, Any]], dict[str, Sums], dict[str, int]]:
        """(rounds newest first, sums by site, verdict counts), the open round included."""
        with self._lock:
            counted_until = self.closed[-1]["number"] if self.closed else 0
            fresh = _rounds(db, counted_until)
            closed = [one for one in fresh if one["state"] == "committed"]
            if closed:
                newest = closed[-1]["number"]
                self.sums = _added(self.sums, _sums(db, counted_until, newest))
                self.verdicts = _counted(self.verdicts, db, counted_until, newest)
                self.closed = [*self.closed, *closed]
                counted_until = newest
            rest = [one for one in fresh if one["number"] > counted_until]
            sums = _added(self.sums, _sums(db, counted_until, 1 << 60)) if rest else self.sums
            verdicts_ = _counted(self.verdicts, db, counted_until, 1 << 60) if rest else self.verdicts
            return [*rest[::-1], *self.closed[::-1]], sums, verdicts_


def _rounds(db: sqlite3.Connection, after: int) -> list[dict[str, Any]]:
    """Rounds after this one, oldest first, with counts of their replies; the summary decoded."""
    rounds = rows(
        db,
        "SELECT n.number, n.state, n.base, n.result, n.global_step, n.steps, n.opened, n.committed, n.summary,"
        " COUNT(r.site) AS replies, COALESCE(SUM(r.verdict = 'admitted'), 0) AS admitted,"
        " COALESCE(SUM(r.bytes), 0) AS bytes"
        " FROM rounds n LEFT JOIN replies r ON r.round = n.number WHERE n.number > ? GROUP BY n.number",
        after,
    )
    for one in rounds:
        one["summary"] = json.loads(one["summary"]) if one["summary"] else {}
        one["void"] = one["summary"].get("void")  # why the round has no result
        one["panel"] = panel_of(one["summary"])
        one["seconds"] = one["committed"] - one["opened"] if one["committed"] else None
    return rounds


def panel_of(summary: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Organ -> what the public panel says of a round: loss, and forgetting (loss over the seed's, minus 1)."""
    panel = summary.get("panel") or {}
    seed = panel.get("seed") or {}
    organs = {}
    for organ, reading in (panel.get("organs") or {}).items():
        losses = {key: float(value) for key, value in reading.items() if value is not None}
        if losses.get("loss") and seed.get(organ):
            losses["forgetting"] = losses["loss"] / float(seed[organ]) - 1
        organs[organ] = losses
    return organs


def _sums(db: sqlite3.Connection, after: int, until: int) -> dict[str, dict[str, Any]]:
    totals = rows(
        db,
        "SELECT site, COUNT(*) AS replies, SUM(verdict = 'admitted') AS admitted, SUM(bytes) AS bytes,"
        " MAX(round) AS last_round FROM replies WHERE round > ? AND round <= ? GROUP BY site",
        after,
        until,
    )
    return {row["site"]: row for row in totals}


def _added(sums: dict[str, Sums], fresh: dict[str, dict[str, Any]]) -> dict[str, Sums]:
    return sums | {site: sums.get(site, Sums()).add(row) for site, row in fresh.items()}


def _counted(counts: dict[str, int], db: sqlite3.Connection, after: int, until: int) -> dict[str, int]:
    counts = dict(counts)
    query = "SELECT verdict, COUNT(*) AS n FROM replies WHERE round > ? AND round <= ? GROUP BY verdict"
    for row in rows(db, query, after, until):
        counts[row["verdict"]] = counts.get(row["verdict"], 0) + row["n"]
    return counts


def sites(db: sqlite3.Connection, sums: Mapping[str, Sums]) -> list[dict[str, Any]]:
    """Every site: what it gave, its last verdict, whether it is connected. Active ones first, by name."""
    site_rows = rows(db, "SELECT site, name, state, capacity, added, revoked, seen FROM sites ORDER BY state, name")
    now = time.time()
    for site in site_rows:
        given = sums.get(site["site"], Sums())
        last = rows(db, "SELECT * FROM replies WHERE round = ? AND site = ?", given.last_round, site["site"])
        site |= {**vars(given), "last": last[0] if last else None}
        site["connected"] = bool(site["seen"]) and now - site["seen"] < CONNECTED_SECONDS
    return site_rows


def round_(db: sqlite3.Connection, number: int) -> dict[str, Any] | None:
    """One round, or None."""
    rounds = _rounds(db, number - 1)[:1]
    return rounds[0] if rounds and rounds[0]["number"] == number else None


def verdicts(db: sqlite3.Connection, number: int) -> list[dict[str, Any]]:
    """The gate's verdicts in one round, and refused replies that did not count as a site's answer."""
    return rows(
        db,
        "SELECT r.*, COALESCE(s.name, r.site) AS name FROM replies r LEFT JOIN sites s ON s.site = r.site"
        " WHERE r.round = ? ORDER BY name",
        number,
    ) + rows(
        db,
        "SELECT f.*, COALESCE(s.name, f.site) AS name, NULL AS images, NULL AS bytes, NULL AS norm, NULL AS weight,"
        " NULL AS loss_before, NULL AS loss_after, NULL AS seconds"
        " FROM refusals f LEFT JOIN sites s ON s.site = f.site WHERE f.round = ? ORDER BY f.id DESC LIMIT 200",
        number,
    )


def merged(db: sqlite3.Connection, number: int) -> list[tuple[str, float | None]]:
    """Names of the sites whose updates are in a round's encoder, with their share of the step, largest first."""
    counts = rows(
        db,
        "SELECT COALESCE(s.name, r.site) AS name, r.weight FROM replies r LEFT JOIN sites s ON s.site = r.site"
        " WHERE r.round = ? AND r.verdict = 'admitted' ORDER BY r.weight DESC, name",
        number,
    )
    return [(row["name"], row["weight"]) for row in counts]


def fact(db: sqlite3.Connection, key: str) -> str:
    row = db.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
    return str(row[0]) if row else ""


@dataclass(frozen=True)
class Closing:
    """What the open round still waits for, and when it closes without it."""

    missing: list[str]  # names of sites that have not answered and are waited for
    silent: list[str]  # names of sites that are not waited for: they answered in none of the last rounds
    quorum: int
    admitted: int
    deadline: float | None  # Unix time from which a quorum suffices; None without settings

    @property
    def text(self) -> str:
        """One sentence for people."""
        left = ", ".join(self.missing)
        if self.admitted < self.quorum:
            more = self.quorum - self.admitted
            wanted = f"Waits for {more} more admitted update{'' if more == 1 else 's'} (quorum {self.quorum})"
            nobody = "every site has answered; those that declined for now are asked again, or enrol another"
            return f"{wanted}: {left or nobody}."
        if not self.missing:
            return "Everyone has answered: it is being merged."
        when = f" or in {duration(max(0.0, self.deadline - time.time()))}" if self.deadline else ""
        return (
            f"The quorum of {self.quorum} is reached. Closes when {left} answer{'s' * (len(self.missing) == 1)}{when}."
            + (f" Not waited for, silent in the last rounds: {', '.join(self.silent)}." if self.silent else "")
        )


@dataclass(frozen=True)
class Overview:
    """The page a coordinator opens in the morning."""

    campaign: str
    name: str  # of the federation
    planned: int | None  # last round of the campaign; None where none is planned
    address: str  # empty while the aggregator does not run
    sites: list[dict[str, Any]]
    rounds: list[dict[str, Any]]  # newest first
    open_round: dict[str, Any] | None
    open_verdicts: list[dict[str, Any]]
    not_admitted: list[dict[str, Any]]  # the last replies that the gate refused
    declined: list[dict[str, Any]]  # the last replies in which a site said no
    replies: list[dict[str, Any]]  # of the last rounds, for the matrix and the curves by site
    closing: Closing | None
    budget: float | None  # largest forgetting that is accepted, as a ratio
    settings: CoordinatorSettings | None

    @property
    def committed(self) -> list[dict[str, Any]]:
        return [r for r in self.rounds if r["state"] == "committed"]

    @property
    def active(self) -> list[dict[str, Any]]:
        return [s for s in self.sites if s["state"] == "active"]

    @property
    def between(self) -> str:
        """What happens while no round is open."""
        if not self.address:
            return "No round is open."
        if self.settings and self.settings.continual.panel and not self.committed:
            return "The panel is being measured; the first round opens then."
        return "No round is open: the next one opens in a moment, or the campaign has ended."

    def open_sites(self) -> dict[str, list[dict[str, Any]]]:
        """Active sites by where they are in the open round, bad ones first; a `why` where they are not admitted."""
        mine = {v["site"]: v for v in self.open_verdicts}
        groups: dict[str, list[dict[str, Any]]] = {
            "not admitted": [], "away": [], "declined": [], "connected": [], "admitted": []
        }  # fmt: skip
        for site in self.active:
            reply = mine.get(site["site"])
            if reply is None:
                groups["connected" if site["connected"] else "away"].append(site)
            else:
                group = reply["verdict"] if reply["verdict"] in ("admitted", "declined") else "not admitted"
                why = reply["detail"] if group == "declined" else reply["verdict"]
                groups[group].append({**site, "why": why})
        return groups

    def matrix(self) -> tuple[list[int], list[dict[str, Any]]]:
        """The last rounds, oldest first, and for each site its reply in each of them or None."""
        numbers = sorted(r["number"] for r in self.rounds[:MATRIX])
        by_place = {(reply["site"], reply["round"]): reply for reply in self.replies}
        shown = [site for site in self.sites if site["state"] == "active" or site["last_round"] in numbers]
        return numbers, [{**site, "cells": [by_place.get((site["site"], n)) for n in numbers]} for site in shown]

    def losses(self) -> tuple[dict[str, list[float | None]], list[int]]:
        """Held-out loss at the sites before and after local training, by round."""
        order = self.committed[::-1]
        names = {"loss_before": "merged encoder, at the sites", "loss_after": "after local training"}
        lines = {text: [r["summary"].get(key) for r in order] for key, text in names.items()}
        return {n: line for n, line in lines.items() if any(v is not None for v in line)}, _numbers(order)

    def site_losses(self) -> tuple[dict[str, list[float | None]], list[int]]:
        """Held-out loss of the merged encoder at each site, by round, of the last rounds."""
        numbers = sorted({reply["round"] for reply in self.replies})
        lines: dict[str, list[float | None]] = {}
        for reply in self.replies:
            if reply["verdict"] == VerdictCode.ADMITTED and reply["loss_before"] is not None:
                line = lines.setdefault(reply["name"], [None] * len(numbers))
                line[numbers.index(reply["round"])] = reply["loss_before"]
        return dict(sorted(lines.items())), numbers

    def organs(self, what: str) -> tuple[dict[str, list[float | None]], list[object]]:
        """A figure of the public panel by organ and round, the seed's first: `loss` or `forgetting`."""
        order = [r for r in self.committed[::-1] if r["panel"]]
        panels = [r["panel"] for r in order]
        seed = (order[-1]["summary"]["panel"].get("seed") or {}) if order else {}
        lines = {}
        for organ in sorted({organ for panel in panels for organ in panel}):
            first = 0.0 if what == "forgetting" else seed.get(organ)
            lines[organ] = [first, *((panel.get(organ) or {}).get(what) for panel in panels)]
        return lines, ["seed", *_numbers(order)]


def _numbers(rounds: list[dict[str, Any]]) -> list[int]:
    return [r["number"] for r in rounds]


def overview(home: Layout, history: History) -> Overview:
    settings = _settings(home)
    with reading(home) as db:
        every, sums, _ = history.read(db)
        opened = next((r for r in every if r["state"] == "open"), None)
        newest = every[0]["number"] if every else 0
        site_rows = sites(db, sums)
        open_verdicts = verdicts(db, opened["number"]) if opened else []
        campaign = fact(db, "campaign")
        return Overview(
            campaign,
            settings.name if settings else campaign,
            _planned(db),
            _address(home),
            site_rows,
            every,
            opened,
            open_verdicts,
            _not_admitted(db, newest),
            _declined(db, newest),
            _replies(db, newest),
            _closing(db, opened, open_verdicts, site_rows, settings) if opened else None,
            settings.continual.budget if settings else None,
            settings,
        )


def _settings(home: Layout) -> CoordinatorSettings | None:
    """The coordinator's settings; None where they are absent or wrong: the page still shows the ledger."""
    try:
        return home.settings()
    except ConfigError:
        return None


def _closing(
    db: sqlite3.Connection,
    opened: Mapping[str, Any],
    open_verdicts: list[dict[str, Any]],
    site_rows: list[dict[str, Any]],
    settings: CoordinatorSettings | None,
) -> Closing:
    """As the round loop decides it (`rounds.quorum.closing`)."""
    active = {site["site"]: site for site in site_rows if site["state"] == "active"}
    verdicts = {
        reply["site"]: Verdict(
            opened["number"], reply["site"], VerdictCode(reply["verdict"]), received=reply["received"]
        )
        for reply in open_verdicts
    }
    connected = [site for site, one in active.items() if one["connected"]]
    rules = settings.rounds if settings else RoundSettings()
    attendance = quorum.Attendance(active, connected, _silent(db, opened["number"]))
    end = quorum.closing(verdicts, attendance, opened["opened"], rules)
    waits, silent = (sorted(active[s]["name"] for s in sites) for sites in (end.waits_for, end.not_waited_for))
    return Closing(waits, silent, max(rules.quorum, 1), end.admitted, end.closes if settings else None)


def _silent(db: sqlite3.Connection, number: int) -> set[str]:
    """As `Ledger.silent`, read only: sites that answered in neither of the last two rounds."""
    last = rows(
        db,
        "SELECT number, opened FROM rounds WHERE number < ? AND steps > 0 AND json_extract(summary, '$.sites') > 0"
        " ORDER BY number DESC LIMIT 2",
        number,
    )
    if len(last) < 2:
        return set()
    query = "SELECT site FROM sites WHERE state = 'active' AND added <= ? AND site NOT IN"
    query += " (SELECT site FROM replies WHERE round IN (?, ?))"
    return {row["site"] for row in rows(db, query, last[1]["opened"], last[0]["number"], last[1]["number"])}


def _planned(db: sqlite3.Connection) -> int | None:
    """Last round of the running campaign, where one is planned."""
    listed = json.loads(fact(db, "campaigns") or "[]")
    return listed[-1]["first"] + listed[-1]["rounds"] - 1 if listed and listed[-1]["rounds"] else None


def _not_admitted(db: sqlite3.Connection, newest: int) -> list[dict[str, Any]]:
    return rows(
        db,
        "SELECT r.round, r.verdict, r.detail, r.received, COALESCE(s.name, r.site) AS name FROM replies r"
        " LEFT JOIN sites s ON s.site = r.site WHERE r.round > ? AND r.verdict NOT IN ('admitted', 'declined')"
        " UNION ALL SELECT * FROM (SELECT f.round, f.verdict, f.detail, f.received, COALESCE(s.name, f.site)"
        " FROM refusals f LEFT JOIN sites s ON s.site = f.site ORDER BY f.id DESC LIMIT 8)"
        " ORDER BY received DESC LIMIT 8",
        newest - RECENT,
    )


def _declined(db: sqlite3.Connection, newest: int) -> list[dict[str, Any]]:
    return rows(
        db,
        "SELECT r.round, r.verdict, r.detail, r.received, COALESCE(s.name, r.site) AS name FROM replies r"
        " LEFT JOIN sites s ON s.site = r.site WHERE r.round > ? AND r.verdict = 'declined'"
        " ORDER BY received DESC LIMIT 8",
        newest - RECENT,
    )


def _replies(db: sqlite3.Connection, newest: int) -> list[dict[str, Any]]:
    """Replies of the rounds that the matrix and the curves show."""
    return rows(
        db,
        "SELECT r.round, r.site, r.verdict, r.detail, r.images, r.loss_before, COALESCE(s.name, r.site) AS name"
        " FROM replies r LEFT JOIN sites s ON s.site = r.site WHERE r.round > ? ORDER BY r.round",
        newest - CURVES,
    )


def _address(home: Layout) -> str:
    try:
        return home.address.read_text().strip()
    except OSError:
        return ""
