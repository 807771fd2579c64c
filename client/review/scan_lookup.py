"""Where scans of the corpus lie now: the ledger knows the way by keyed hashes, so no other folder is looked into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from usfmae.client.intake.spool import SPOOL, cleaned
from usfmae.client.site import Site
from usfmae.core.errors import SourceError
from usfmae.core.prepare.identify import located
from usfmae.core.prepare.ledger import CorpusLedger
from usfmae.core.prepare.ledger_queries import KnownScan
from usfmae.core.read.discover import Candidate
from usfmae.core.types import Scan


def files_of(site: Site, scans: Sequence[KnownScan]) -> dict[int, Candidate]:
    """Where each scan lies, by its number in the ledger, of those that are still there.

    What came over the network is looked for among what is kept for a while after its cleaning first.
    """
    spooled = {scan.n: cleaned(site.root / SPOOL, scan.id) for scan in scans}
    files = {n: Candidate.of(path) for n, path in spooled.items() if path.exists()}
    folders = [folder for folder in (*site.settings.sources, _spool(site)) if folder.exists()]
    missing = [scan for scan in scans if scan.n not in files]
    return files | located(CorpusLedger(site.corpus), folders, site.secret, missing)


def _spool(site: Site) -> Path:
    return site.root / SPOOL


def scan_of(site: Site, id_: str) -> Scan:
    """One scan. SourceError where it is gone."""
    scan = CorpusLedger(site.corpus).scan(id_)
    files = files_of(site, [scan]) if scan else {}
    if scan is None or not files:
        raise SourceError("this scan", "is not in the sources any more, or was never readable", "drop it")
    return scan.at(files[scan.n].path, files[scan.n].member)
