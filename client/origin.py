"""Where the scans of a corpus lie: the sources are walked, none but archives is opened."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from usfmae.client.site import Site
from usfmae.client.sources.spool import SPOOL
from usfmae.core.errors import SourceError
from usfmae.core.flow import Scan, Trail
from usfmae.core.prepare.ledger import Ledger
from usfmae.core.prepare.plan import Known
from usfmae.core.read import Unreadable
from usfmae.core.read.discover import Candidate, is_archive, member_candidates, members, walk


def located(site: Site, scans: Collection[str]) -> dict[str, Known]:
    """Scan id -> the scan, of those that are still there and could be read."""
    places = Ledger(site.corpus).places()
    folders = [folder for folder in (*site.settings.sources, site.root / SPOOL) if folder.exists()]
    found: dict[str, Known] = {}
    for candidate in _files(walk(folders, skip=(site.corpus,)), places, site):
        entry = places.get(candidate.place(site.secret), {})
        if entry.get("id") in scans and entry.get("kind"):
            scan = Scan(candidate.path, entry["kind"], Trail(entry["id"]), candidate.member, entry.get("group", ""))
            found.setdefault(entry["id"], Known(scan, entry.get("planned", 1), entry.get("study", "")))
            if len(found) == len(scans):
                break
    return found


def scan_of(site: Site, id_: str) -> Scan:
    """One scan. SourceError where it is gone."""
    found = located(site, {id_})
    if not found:
        raise SourceError("this scan", "is not in the sources any more, or was never readable", "drop it")
    return found[id_].scan


def _files(found: Iterable[Candidate], places: Mapping[str, Any], site: Site) -> Iterator[Candidate]:
    """Files, and members of archives: what the ledger does not know by its place may be one."""
    for candidate in found:
        if candidate.place(site.secret) in places or candidate.broken or not is_archive(candidate):
            yield candidate
            continue
        with suppress(Unreadable):
            yield from member_candidates(candidate, members(candidate.path, site.settings.read))
