"""`usfmae-server page`."""

from __future__ import annotations

import signal
from pathlib import Path

import click


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--host", help="Address to listen on; default: page.host.")
@click.option("--port", type=int, help="Port to listen on; default: page.port, 8080 where that is 0.")
def page(directory: Path, host: str | None, port: int | None) -> None:
    """The coordinator's page alone, beside no aggregator.

    For a federation that has ended, or that another process serves: rounds, sites, charts and downloads, until Ctrl-C.
    """
    from usfmae.server.dashboard.serve import page_served
    from usfmae.server.layout import Layout

    home = Layout(directory)
    settings = home.settings().page
    chosen = {"host": host or settings.host, "port": settings.port or 8080 if port is None else port}
    with page_served(home, settings.model_copy(update=chosen)) as address:
        click.echo(address)
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        signal.pause()
