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
    from usfmae.core.web.templating import ago
    from usfmae.server.layout import Layout
    from usfmae.server.status import status as read

    fields = read(Layout(directory))
    if as_json:
        print_json(fields)
        return
    click.echo(f"campaign    {fields['campaign']}")
    click.echo(f"running     {'at ' + fields['address'] if fields['running'] else 'no'}")
    planned = f" of {fields['planned']}" if fields["planned"] else ""
    opened = f", {fields['open_round']} open" if fields["open_round"] else ""
    click.echo(f"round       {fields['round']}{planned} committed{opened}")
    click.echo(f"waits       {fields['waits']}")
    click.echo(f"checkpoint  {fields['checkpoint']}")
    click.echo(f"hash        {fields['hash'] or '-'}")
    for verdict in fields["rounds"][-1]["verdicts"] if fields["rounds"] else ():
        counts = f"{verdict['images']:8d} images" if verdict["images"] else " " * 15
        click.echo(f"  {verdict['name']:24s} {verdict['verdict']:14s} {counts}  {verdict['detail']}")
    states = {site["name"]: site["seen"] for site in fields["sites"]}
    for name in fields["waiting_for"]:
        seen = states.get(name)
        click.echo(f"  {name:24s} {'no answer yet':14s} {' ' * 15}  seen {ago(seen)}")
