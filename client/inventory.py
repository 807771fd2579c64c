"""What the site has: its scans taken into the corpus, and how much of it each round used."""

from __future__ import annotations

from pathlib import Path

from usfmae.client import allowance
from usfmae.client.site import Site
from usfmae.core.config import ModelSettings, Settings
from usfmae.core.errors import SourceError
from usfmae.core.prepare import PrepareSummary, Progress, prepare


def sources(site: Site) -> list[Path]:
    """The configured sources. SourceError where there is none."""
    if not site.settings.sources:
        raise SourceError(f"site {site.root}", "has no sources", "name them under 'sources' in its site.yaml")
    return list(site.settings.sources)


def take_in(site: Site, workers: int = 1, progress: Progress | None = None) -> PrepareSummary:
    """Clean what is new in the sources into the corpus, and note the counts in the audit log."""
    allowance.check_disk(site)
    settings = Settings(
        read=site.settings.read, clean=site.settings.clean, model=ModelSettings(image_size=site.settings.image_size)
    )
    summary = prepare(sources(site), site.corpus, settings, secret=site.secret, workers=workers, progress=progress)
    counts = ("scans", "frames", "kept", "quarantined", "refused", "failed", "duplicates")
    site.note("corpus.prepared", **{name: getattr(summary, name) for name in counts})
    return summary
