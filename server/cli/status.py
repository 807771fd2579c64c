"""`usfmae-server status`."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.core.cli.shell import print_json


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def status(directory: Path, as_json: bool) -> None:
    """Round, sites, verdicts, last checkpoint and its hash.

    Round, sites, verdicts of the last round, last checkpoint and its hash.
    """
    from usfmae.server.layout import Layout
    from usfmae.server.status import status as read

    found = read(Layout(directory))
    if as_json:
        print_json(found)
        return
    click.echo(f"campaign    {found['campaign']}")
    click.echo(f"running     {'at ' + found['address'] if found['running'] else 'no'}")
    click.echo(
        f"round       {found['round']} committed" + (f", {found['open_round']} open" if found["open_round"] else "")
    )
    click.echo(f"checkpoint  {found['checkpoint']}")
    click.echo(f"hash        {found['hash'] or '-'}")
    for verdict in found["rounds"][-1]["verdicts"] if found["rounds"] else ():
        click.echo(
            f"  {verdict['name']:24s} {verdict['verdict']:14s} {verdict['images']:8d} images  {verdict['detail']}"
        )
