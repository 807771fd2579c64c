"""What the site has: its scans taken into the corpus, and how much of it each round used."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from usfmae.client import site_policy
from usfmae.client.intake.spool import SPOOL, Spool
from usfmae.client.review.quarantine import deciding, is_decided
from usfmae.client.site import Site, write_json
from usfmae.core.config import ModelSettings, Settings
from usfmae.core.errors import SourceError
from usfmae.core.prepare import Parallel, PrepareSummary, Progress, Sources, prepare
from usfmae.core.prepare.identify import folder_key, place_key
from usfmae.core.prepare.ledger import CorpusLedger
from usfmae.core.read.discover import listings

COUNTS = ("scans", "frames", "kept", "quarantined", "refused", "failed", "duplicates")  # of the log


def sources(site: Site) -> list[Path]:
    """The configured sources and the spool of what came over the network. SourceError where there is neither."""
    spool = site.root / SPOOL
    if spool.is_dir():
        return [*site.settings.sources, spool]
    if not site.settings.sources:
        raise SourceError(f"site {site.root}", "has no sources", "name them under 'sources' in its site.yaml")
    return list(site.settings.sources)


def preparation(site: Site) -> Settings:
    """The settings this site's scans are read and cleaned with."""
    own = site.settings
    return Settings(read=own.read, clean=own.clean, model=ModelSettings(image_size=own.image_size))


def take_in(site: Site, workers: int = 1, progress: Progress | None = None) -> PrepareSummary:
    """Clean what is new in the sources into the corpus, and note the counts in the audit log."""
    site_policy.check_disk(site)
    before = _ever(site)
    summary = prepare(Sources(sources(site)), site.corpus, preparation(site), site.secret, Parallel(workers), progress)
    counts: dict[str, Any] = {name: getattr(summary, name) for name in COUNTS}
    # Totals follow the sources: what was received and cleaned is in none of them any more. So what is new is noted too.
    new = _ever(site) - before
    counts |= {f"new_{name}": new[name] for name in COUNTS}
    site.note("corpus.prepared", **counts)
    write_json(site.root / "prepared.json", {**summary.as_dict(), "time": time.time()})
    empty_spool(site)
    return summary


def _ever(site: Site) -> Counter[str]:
    """Counts of everything that ever came in."""
    summary = PrepareSummary.of(CorpusLedger(site.corpus).counts(), {})
    return Counter({name: getattr(summary, name) for name in COUNTS})


def empty_spool(site: Site) -> int:
    """Received files that are done with (packed, refused, dropped) go; those that wait for a person stay.

    With `intake.keep_days` they are set aside first, for the page to show. Returns how many were done with.
    """
    if not (site.root / SPOOL).is_dir():
        return 0
    ledger, files = CorpusLedger(site.corpus), []
    with deciding(site) as decided:
        for listing in listings([site.root / SPOOL]):
            folder = folder_key(site.secret, listing.place)
            for candidate in listing.candidates():
                done, held = ledger.is_done_with(folder, place_key(site.secret, candidate))
                if done and all(is_decided(decided, entry) for entry in held):
                    files.append(candidate.path)
    spool, days = Spool(site.root / SPOOL, site.secret, floor_bytes=site.floor_bytes), site.settings.intake.keep_days
    count = spool.drop(files, keep=days > 0)
    spool.expire(days)
    if count:
        site.note("spool.emptied", files=count)
    return count
