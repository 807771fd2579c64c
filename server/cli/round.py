"""`usfmae-server round close`."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.core.cli.shell import print_json


@click.group("round")
def round_() -> None:
    """Close the open round now."""


@round_.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def close(directory: Path, as_json: bool) -> None:
    """Merge the open round with the updates that are admitted, without waiting for the other hospitals.

    A running aggregator follows within a second. Refused while fewer than rounds.quorum updates are admitted."""
    from usfmae.server.layout import Layout
    from usfmae.server.rounds.quorum import close_now

    done = close_now(Layout(directory))
    print_json(done) if as_json else click.echo(f"round {done['round']} closes with {done['admitted']} updates")
