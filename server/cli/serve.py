"""`usfmae-server serve`: what `run` supervises."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--rounds", default=0, show_default=True, help="End when this many rounds are committed; 0 goes on.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of coordinator.yaml.")
def serve(directory: Path, rounds: int, overrides: tuple[str, ...]) -> None:
    """The aggregator's process alone: for a service manager that restarts it itself (systemd, Kubernetes)."""
    from usfmae.server.aggregator import serve as serve_
    from usfmae.server.layout import Layout

    serve_(Layout(directory), rounds, overrides)
