"""`usfmae-client outbox`: what left, what waits to leave."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.client.cli.options import as_json, site_directory
from usfmae.core.cli.shell import print_json


@click.command()
@site_directory
@click.argument("action", required=False, type=click.Choice(["list", "show", "approve", "reject"]), default="list")
@click.argument("entry", required=False)
@click.option("--reason", default="", help="Why, for the audit log.")
@as_json
def outbox(directory: Path, action: str, entry: str | None, reason: str, as_json: bool) -> None:
    """What left, what waits to leave; approve or reject it.

    List every update this site made; show the sheet of one; approve or reject one that waits.

    \b
    usfmae-client outbox SITE
    usfmae-client outbox SITE show ENTRY
    usfmae-client outbox SITE approve ENTRY
    usfmae-client outbox SITE reject ENTRY --reason TEXT
    """
    from usfmae.client import outbox as room
    from usfmae.client.site import Site
    from usfmae.core.errors import UsageError

    site = Site.open(directory)
    if action != "list" and not entry:
        raise UsageError(f"outbox {action}", "needs an ENTRY", f"see 'usfmae-client outbox {directory}'")
    if action in ("approve", "reject"):
        room.decide(site, str(entry), action == "approve", reason)
        click.echo(f"{entry} {'approved' if action == 'approve' else 'rejected'}", err=True)
        return
    entries = room.entries(site)
    if action == "show":
        entries = [e for e in entries if e["id"] == entry]
        if not entries:
            raise UsageError(f"outbox entry {entry!r:.60}", "does not exist", f"see 'usfmae-client outbox {directory}'")
    if as_json:
        print_json(entries if action == "list" else entries[0])
    elif action == "show":
        click.echo(room.sheet(entries[0]) + f"\nstate: {entries[0]['state']}")
    else:
        for e in entries:
            click.echo(f"{e['id']}  round {e['round']:5d}  {e['bytes']:>11,d} bytes  {e['state']:8s}  {e['campaign']}")
