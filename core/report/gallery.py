"""The report of `prepare`: what was kept, what was not and why, and pictures before and after, for people inside.

It shows scans as they were recorded, names included: it is written where it was asked for and nowhere else.
"""

from __future__ import annotations

import base64
import functools
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from usfmae.core.prepare.identify import folder_key, located
from usfmae.core.prepare.ledger import CorpusLedger
from usfmae.core.prepare.ledger_queries import text
from usfmae.core.prepare.progress import PrepareSummary
from usfmae.core.prepare.run import unit_of
from usfmae.core.read.discover import listings
from usfmae.core.report.page import write_page
from usfmae.core.report.reasons import meaning
from usfmae.core.sandbox.pool import Pool
from usfmae.core.sandbox.worker import Worker

KEPT_SHOWN = 12
REASONS_SHOWN = 8  # reasons with pictures
PER_REASON = 3
FOLDERS_SHOWN = 30


@dataclass(frozen=True)
class Wanted:
    """A frame to show."""

    scan: str
    index: int  # -1: the first that was kept
    caption: str
    reason: str = ""


def write_gallery(path: Path, sources: Sequence[Path], corpus: Path, summary: PrepareSummary, pool: Pool) -> None:
    """One self-contained HTML page about the scans of `sources` in `corpus`, after `prepare`; `pool` shows them again."""
    ledger, settings = CorpusLedger(corpus), pool.settings
    show = functools.partial(_shown, pool, ledger, sources)
    kept, held = show(_kept_wanted(ledger)), show(_quarantined_wanted(ledger))
    folders = _folders(ledger, sources, pool.secret)
    write_page(
        path,
        "gallery.html",
        summary=summary.as_dict(),
        profile=settings.clean.profile,
        fps=settings.read.fps,
        reasons=_reasons(summary),
        folders=folders[:FOLDERS_SHOWN],
        more_folders=len(folders[FOLDERS_SHOWN:]),
        open=sum(n for name, n in ledger.counts(present=True).items() if name in ("held", "quarantined")),
        formats=_table(ledger, "format"),
        devices=_table(ledger, "device"),
        histograms=_histograms(ledger),
        kept=kept,
        quarantined=_by_reason(held, summary),
        notes=_notes(ledger),
    )


def _reasons(summary: PrepareSummary) -> list[dict[str, Any]]:
    ordered = sorted(summary.reasons.items(), key=lambda item: (-item[1], item[0]))
    return [{"code": code, "count": count, "meaning": meaning(code)} for code, count in ordered]


TABLES = {
    "format": "SELECT format, held, count(*), sum(frames), sum(kept) FROM present GROUP BY 1, 2",
    "device": "SELECT device, held, count(*), sum(frames), sum(kept) FROM present GROUP BY 1, 2",
}


def _table(ledger: CorpusLedger, column: str) -> list[dict[str, Any]]:
    """Scans, frames, kept and quarantined frames by format or device, most frequent first."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    with ledger.reading() as db:
        for name, held, scans, frames, kept in db.execute(TABLES[column]):
            back = scans * sum(json.loads(held).values())
            rows[name or "not stated"].update(scans=scans, frames=frames, kept=kept, quarantined=back)
    ordered = sorted(rows.items(), key=lambda item: (-item[1]["scans"], item[0]))
    return [{"name": name, **counts} for name, counts in ordered]


INSIDE = (
    "SELECT p.outcome, s.outcome, s.held, s.frames, s.kept FROM places p LEFT JOIN scans s ON s.n = p.scan "
    "WHERE p.folder IN (SELECT n FROM folders WHERE key = ?1 UNION "
    "SELECT n FROM folders WHERE archive AND parent = (SELECT n FROM folders WHERE key = ?1))"
)


def _folders(ledger: CorpusLedger, sources: Sequence[Path], secret: bytes) -> list[dict[str, Any]]:
    """The same by the first folder below a source, numbered in the order of names: a name may be a patient's."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    with ledger.reading() as db:
        for listing in listings(sources, skip=(ledger.corpus,)):
            row = rows[listing.below.partition("/")[0] or "/"]
            for place, outcome, held, frames, kept in db.execute(INSIDE, (folder_key(secret, listing.place),)):
                whole = "quarantined" in (place, outcome)
                back = sum(json.loads(held).values()) if held else 0
                row.update(scans=place not in ("none", "archive"), frames=frames or 0, kept=kept or 0)
                row["quarantined"] += back + whole
    numbered = [
        ("the source itself" if name == "/" else f"number {n}", rows[name]) for n, name in enumerate(sorted(rows))
    ]
    ordered = sorted(numbered, key=lambda item: -item[1]["scans"])
    return [{"name": name, **counts} for name, counts in ordered if counts["scans"]]


def _notes(ledger: CorpusLedger) -> Counter[str]:
    notes: Counter[str] = Counter()
    with ledger.reading() as db:
        for names, count in db.execute("SELECT notes, count(*) FROM present GROUP BY 1"):
            notes.update(dict.fromkeys(names.split(), count))
    return notes


def _histograms(ledger: CorpusLedger) -> list[Markup]:
    query = "SELECT brightness, region, changed FROM present WHERE brightness IS NOT NULL"
    with ledger.reading() as db:
        figures = np.array(db.execute(query).fetchall(), np.float32).reshape(-1, 3)
    return [
        histogram(figures[:, 0], 0, 255, "mean brightness of the tissue, 0 to 255"),
        histogram(100 * figures[:, 1], 0, 100, "scan region, % of the frame"),
        histogram(100 * figures[:, 2], 0, 100, "changed pixels, % of the frame"),
    ]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """`count` items at equal distances."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


def _kept_wanted(ledger: CorpusLedger) -> list[Wanted]:
    """Kept frames spread over the formats, so that a rare one is seen too."""
    by_format: dict[str, list[str]] = defaultdict(list)
    with ledger.reading() as db:
        for id_, name in db.execute("SELECT id, format FROM present WHERE kept > 0 ORDER BY n"):
            by_format[name].append(text(id_))
    share = max(1, KEPT_SHOWN // max(1, len(by_format)))
    return [Wanted(id_, -1, name) for name, ids in sorted(by_format.items()) for id_ in _spread(ids, share)]


def _quarantined_wanted(ledger: CorpusLedger) -> list[Wanted]:
    by_reason: dict[str, list[Wanted]] = defaultdict(list)
    query = (
        "SELECT h.reason, s.id, s.format, min(h.frame) FROM held h JOIN present s ON s.id = h.scan "
        "WHERE h.frame >= 0 GROUP BY h.reason, s.n ORDER BY s.n"
    )
    with ledger.reading() as db:
        for reason, id_, name, frame in db.execute(query):
            by_reason[reason].append(Wanted(text(id_), frame, name, reason))
    frequent = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))[:REASONS_SHOWN]
    return [example for _, all_ in frequent for example in _spread(all_, PER_REASON)]


def _shown(
    pool: Pool, ledger: CorpusLedger, sources: Sequence[Path], examples: Sequence[Wanted]
) -> list[dict[str, Any]]:
    """The pictures of each wanted frame as data URIs; what cannot be shown is left out."""
    units = {}
    for one in examples:
        scans = ledger.together(one.scan)
        units[one] = unit_of(scans, located(ledger, sources, pool.secret, scans))

    def show(worker: Worker, one: Wanted) -> dict[str, bytes]:
        return worker.show(units[one], one.scan, one.index)

    there = [one for one in examples if any(scan.trail.id == one.scan for scan in units[one].scans)]
    return [
        {"caption": one.caption, "reason": one.reason, **{name: _uri(png) for name, png in pictures.items()}}
        for one, pictures in pool.map(show, there)
        if pictures
    ]


def _uri(png: bytes) -> Markup:
    return Markup("data:image/png;base64," + base64.b64encode(png).decode())  # noqa: S704


def _by_reason(shown: Sequence[Mapping[str, Any]], summary: PrepareSummary) -> list[dict[str, Any]]:
    grouped: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for item in shown:
        grouped[item["reason"]].append(item)
    return [
        {"code": code, "count": summary.reasons.get(code, 0), "meaning": meaning(code), "items": items}
        for code, items in grouped.items()
    ]


BINS = 25
WIDTH, HEIGHT, BASE, TOP = 320, 130, 106, 22


def histogram(values: Sequence[float] | NDArray[np.float32], low: float, high: float, title: str) -> Markup:
    """Counts of values in equal bins of low..high, with the median marked."""
    counts, _ = np.histogram(np.clip(values, low, high), BINS, (low, high))
    tallest, step = max(1, int(counts.max())), WIDTH / BINS
    bars = [
        f'<rect x="{i * step + 1:.1f}" y="{BASE - (BASE - TOP) * n / tallest:.1f}" width="{step - 2:.1f}" '
        f'height="{(BASE - TOP) * n / tallest:.1f}" fill="var(--c0)"><title>{n} scans</title></rect>'
        for i, n in enumerate(counts)
    ]
    middle = f"median {np.median(values):.3g} of {len(values)} scans" if len(values) else "no values"
    return Markup(  # noqa: S704
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: {middle}" class="chart">'
        f'<text x="0" y="10">{escape(title)}</text>{"".join(bars)}'
        f'<line class="grid-line" x1="0" x2="{WIDTH}" y1="{BASE}" y2="{BASE}"/>'
        f'<text x="0" y="{BASE + 14}">{low:g}</text>'
        f'<text x="{WIDTH / 2}" y="{BASE + 14}" text-anchor="middle">{middle}</text>'
        f'<text x="{WIDTH}" y="{BASE + 14}" text-anchor="end">{high:g}</text></svg>'
    )
