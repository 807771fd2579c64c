"""`usfmae-server run`."""

from __future__ import annotations

import logging
from pathlib import Path

import click


@click.command("run")
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--rounds", default=0, show_default=True, help="End when this many rounds are committed; 0 goes on.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of coordinator.yaml.")
def run_(directory: Path, rounds: int, overrides: tuple[str, ...]) -> None:
    """Serve the sites and run rounds, until stopped.

    One process: the hospitals' port, the round loop, the page and the metrics. Ctrl-C and SIGTERM stop it cleanly; the
    same command goes on at the round it was in. systemd, Docker or Kubernetes starts it again after a crash.
    """
    from usfmae.server.aggregator import serve
    from usfmae.server.dashboard.serve import watched
    from usfmae.server.layout import Layout
    from usfmae.server.renewal import warning

    home = Layout(directory)
    settings = home.settings(overrides)  # a mistake is told at once
    if soon := warning(home):
        logging.getLogger(__name__).warning(soon)
    with watched(home, settings.page, settings.metrics):
        serve(home, rounds, overrides)
