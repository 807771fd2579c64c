"""`usfmae-server run`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click


@click.command("run")
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--rounds", default=0, show_default=True, help="End when this many rounds are committed; 0 goes on.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of coordinator.yaml.")
def run_(directory: Path, rounds: int, overrides: tuple[str, ...]) -> None:
    """Serve the hospitals and run rounds. The work is done in a child process that is started again after a crash
    and goes on at the round it was in; Ctrl-C stops cleanly, and the same command goes on later."""
    from usfmae.server.dashboard.serve import watched
    from usfmae.server.layout import Layout
    from usfmae.server.renewal import warning
    from usfmae.server.supervisor import supervise

    home = Layout(directory)
    settings = home.settings(overrides)  # a mistake is told at once
    if soon := warning(home):
        logging.getLogger(__name__).warning(soon)
    with watched(home, settings.page, settings.metrics):
        code = supervise(home, rounds, overrides)
    sys.exit(code)
