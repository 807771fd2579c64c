"""Where the scans of a corpus lie: the sources are walked, none but archives is opened."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from usfmae.client.intake.spool import SPOOL, cleaned
from usfmae.client.site import Site
from usfmae.core.errors import SourceError
from usfmae.core.prepare.ledger import CorpusLedger
from usfmae.core.prepare.plan import Known
from usfmae.core.read import Unreadable
from usfmae.core.read.discover import Candidate, is_archive, member_candidates, members, walk
from usfmae.core.types import Scan, Trail


def located(site: Site, scans: Collection[str]) -> dict[str, Known]:
    """Scan id -> the scan, of those that are still there and could be read."""
    places = CorpusLedger(site.corpus).places()
    folders = [folder for folder in (*site.settings.sources, site.root / SPOOL) if folder.exists()]
    found = _set_aside(site, scans, places)
    if len(found) == len(scans):
        return found
    for candidate in _files(walk(folders, skip=(site.corpus,)), places, site):
        entry = places.get(candidate.place(site.secret), {})
        if entry.get("id") in scans and entry.get("kind"):
            found.setdefault(entry["id"], _known(entry, candidate.path, candidate.member))
            if len(found) == len(scans):
                break
    return found


def _known(entry: Mapping[str, Any], path: Path, member: str = "") -> Known:
    scan = Scan(path, entry["kind"], Trail(entry["id"]), member, entry.get("group", ""))
    return Known(scan, entry.get("planned", 1), entry.get("study", ""))


def _set_aside(site: Site, scans: Collection[str], places: Mapping[str, Any]) -> dict[str, Known]:
    """What came over the network and is kept for a while after its cleaning."""
    found: dict[str, Known] = {}
    for entry in places.values():
        if entry.get("id") in scans and entry.get("kind") and entry["id"] not in found:
            path = cleaned(site.root / SPOOL, entry["id"])
            if path.exists():
                found[entry["id"]] = _known(entry, path)
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
