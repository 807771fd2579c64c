"""The report of `prepare`: what was kept, what was not and why, and pictures before and after, for people inside.

It shows scans as they were recorded, names included: it is written where it was asked for and nowhere else.
"""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from usfmae.core.config import Settings
from usfmae.core.prepare.identify import identified
from usfmae.core.prepare.ledger import CorpusLedger
from usfmae.core.prepare.plan import Known, unit_of
from usfmae.core.prepare.summary import PrepareSummary
from usfmae.core.report.histogram import histogram
from usfmae.core.report.page import write_page
from usfmae.core.report.reasons import meaning
from usfmae.core.sandbox.pool import Pool
from usfmae.core.sandbox.worker import ScanResult, Worker

KEPT_SHOWN = 12
REASONS_SHOWN = 8  # reasons with pictures
PER_REASON = 3


@dataclass(frozen=True)
class Wanted:
    """A frame to show."""

    scan: str
    index: int  # -1: the first that was kept
    caption: str
    reason: str = ""


def write_gallery(  # noqa: PLR0913
    path: Path,
    sources: Sequence[Path],
    corpus: Path,
    settings: Settings,
    summary: PrepareSummary,
    *,
    secret: bytes,
    workers: int = 1,
) -> None:
    """One self-contained HTML page about the scans of `sources` in `corpus`, after `prepare`."""
    ledger = CorpusLedger(corpus)
    kinds = {entry["id"]: entry for entry in ledger.places().values() if entry["outcome"] == "scan"}
    results = ledger.results()
    with Pool(workers, settings, secret) as pool:
        found = identified(sources, ledger, pool, secret, PrepareSummary())
        here = {id_: results[id_] for id_ in found if id_ in results}
        kept = _shown(pool, _kept_wanted(here, kinds), found, ledger)
        held = _shown(pool, _quarantined_wanted(here, kinds), found, ledger)
    write_page(
        path,
        "gallery.html",
        summary=summary.as_dict(),
        profile=settings.clean.profile,
        fps=settings.read.fps,
        reasons=_reasons(summary),
        formats=_table(here, kinds, "format"),
        devices=_table(here, kinds, "device"),
        histograms=_histograms(here.values()),
        kept=kept,
        quarantined=_by_reason(held),
        notes=Counter(note for result in here.values() for note in result.notes),
    )


def _reasons(summary: PrepareSummary) -> list[dict[str, Any]]:
    ordered = sorted(summary.reasons.items(), key=lambda item: (-item[1], item[0]))
    return [{"code": code, "count": count, "meaning": meaning(code)} for code, count in ordered]


def _table(here: Mapping[str, ScanResult], kinds: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    """Scans, frames, kept and quarantined frames by format or device, most frequent first."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for id_, result in here.items():
        held = sum(len(indices) for indices in result.quarantined.values())
        rows[kinds.get(id_, {}).get(column) or "not stated"].update(
            scans=1, frames=result.frames, kept=result.kept, quarantined=held
        )
    ordered = sorted(rows.items(), key=lambda item: (-item[1]["scans"], item[0]))
    return [{"name": name, **counts} for name, counts in ordered]


def _histograms(results: Iterable[ScanResult]) -> list[Markup]:
    figures = [result.figures for result in results if result.figures]
    return [
        histogram([f["brightness"] for f in figures], 0, 255, "mean brightness of the tissue, 0 to 255"),
        histogram([100 * f["region"] for f in figures], 0, 100, "scan region, % of the frame"),
        histogram([100 * f["changed"] for f in figures], 0, 100, "changed pixels, % of the frame"),
    ]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """`count` items at equal distances."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


def _kept_wanted(here: Mapping[str, ScanResult], kinds: Mapping[str, Any]) -> list[Wanted]:
    """Kept frames spread over the formats, so that a rare one is seen too."""
    by_format: dict[str, list[str]] = defaultdict(list)
    for id_, result in here.items():
        if result.kept:
            by_format[kinds.get(id_, {}).get("format", "")].append(id_)
    share = max(1, KEPT_SHOWN // max(1, len(by_format)))
    return [Wanted(id_, -1, name) for name, ids in sorted(by_format.items()) for id_ in _spread(ids, share)]


def _quarantined_wanted(here: Mapping[str, ScanResult], kinds: Mapping[str, Any]) -> list[Wanted]:
    by_reason: dict[str, list[Wanted]] = defaultdict(list)
    for id_, result in here.items():
        for reason, indices in result.quarantined.items():
            by_reason[reason].append(Wanted(id_, indices[0], kinds.get(id_, {}).get("format", ""), reason))
    frequent = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))[:REASONS_SHOWN]
    return [wanted for _, all_ in frequent for wanted in _spread(all_, PER_REASON)]


def _shown(pool: Pool, wanted: Sequence[Wanted], found: dict[str, Known], ledger: CorpusLedger) -> list[dict[str, Any]]:
    """The pictures of each wanted frame as data URIs; what cannot be shown is left out."""
    unit_ids = {id_: ids for _, units in ledger.plans() for ids in units for id_ in ids}

    def show(worker: Worker, one: Wanted) -> dict[str, bytes]:
        return worker.show(unit_of(unit_ids.get(one.scan, [one.scan]), found), one.scan, one.index)

    return [
        {"caption": one.caption, "reason": one.reason, **{name: _uri(png) for name, png in pictures.items()}}
        for one, pictures in pool.map(show, wanted)
        if pictures
    ]


def _uri(png: bytes) -> Markup:
    return Markup("data:image/png;base64," + base64.b64encode(png).decode())  # noqa: S704


def _by_reason(shown: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    grouped: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for item in shown:
        grouped[item["reason"]].append(item)
    return [{"code": code, "meaning": meaning(code), "items": items} for code, items in grouped.items()]
