"""`usfmae-server init`."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.core.cli.shell import print_json


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", required=True, help="Name of the federation: letters, digits, '_', '-', '.'.")
@click.option("--seed", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Checkpoint to start from.")
@click.option("--host", default="", help="Host name or address the hospitals will use; goes into the certificate.")
@click.option(
    "--port", default=8443, show_default=True, help="Port of the fleet API; 0 takes a free one at each start."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any key of coordinator.yaml; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def init(
    directory: Path, name: str, seed: Path | None, host: str, port: int, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Make a federation: keys, certificates, settings, seed.

    DIRECTORY gets a certificate authority, the server's certificate, the coordinator's key, coordinator.yaml, the
    ledger and round 0.
    """
    from usfmae.core.keys import grouped
    from usfmae.server.bootstrap import create

    made = create(directory, name, host, port, seed, overrides)
    if as_json:
        print_json(made)
    else:
        click.echo(f"federation {name} in {directory}, fingerprint {grouped(made['fingerprint'])}")
        click.echo(f"give every hospital: {made['ca']} and {made['coordinator_key']}")
