"""`usfmae-client prepare`: the site's scans become its corpus."""

from __future__ import annotations

import os
from pathlib import Path

import click

from usfmae.client.cli.options import as_json, overriding, site_directory
from usfmae.core.cli.shell import print_json


@click.command()
@site_directory
@overriding
@click.option("--workers", type=click.IntRange(1), default=None, help="Decoding processes (default: one per core).")
@as_json
def prepare(directory: Path, overrides: tuple[str, ...], workers: int | None, as_json: bool) -> None:
    """Clean the site's scans into its corpus; again: only new ones.

    Read every scan of the site's sources, remove all that is not tissue, pack it into SITE/corpus.

    Sources are only ever read. Run it again when scans were added; it may run while the agent trains.
    """
    from usfmae.client.intake.inventory import take_in
    from usfmae.client.site import Site
    from usfmae.core.cli.prepare import complain_if_empty, print_summary
    from usfmae.core.prepare.progress import shown_progress

    site = Site.open(directory, overrides)
    with shown_progress() as progress:
        summary = take_in(site, workers or os.cpu_count() or 1, progress)
    if as_json:
        print_json(summary.as_dict())
    else:
        print_summary(summary)
    complain_if_empty(summary.scans, [str(source) for source in site.settings.sources])
