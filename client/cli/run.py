"""`usfmae-client run`: serve the federation."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.client.cli.options import overriding, site_directory


@click.command()
@site_directory
@overriding
@click.option("--until-idle", type=click.FloatRange(min=1), metavar="SECONDS", help="End after this long without work.")
def run(directory: Path, overrides: tuple[str, ...], until_idle: float | None) -> None:
    """Serve the federation until stopped.

    Connect to the aggregator, train when asked, send what the site's policy lets go.

    Beside it run, as far as site.yaml switches them on: the site's page, the Prometheus endpoint, the C-STORE
    listener, the DICOMweb pull and the cleaning of new scans.

    Ctrl-C or SIGTERM ends it cleanly: a running training writes its checkpoint and goes on at the next start. A
    server that is away is waited for, for hours if need be. Exit code 6 means that the server refuses this site's key.
    """
    from usfmae.client.agent import Agent
    from usfmae.client.background_services import watched
    from usfmae.client.site import Site

    site = Site.open(directory, overrides)
    with site.served_alone():  # another agent is said to be there before one of its ports is said to be taken
        pass
    with watched(site):
        Agent(site, until_idle).run()
