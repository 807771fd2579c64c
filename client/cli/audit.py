"""`usfmae-client audit`: the site's own log of what happened."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.client.cli.options import as_json, site_directory
from usfmae.core.cli.shell import print_json


@click.command()
@site_directory
@click.argument("action", required=False, type=click.Choice(["show", "verify"]), default="show")
@click.option("--head", metavar="HASH", help="verify: a hash noted earlier that must occur; finds a log cut short.")
@as_json
def audit(directory: Path, action: str, head: str | None, as_json: bool) -> None:
    """The hash-chained log: show it, verify it.

    Show every entry, or verify that none was edited, removed or swapped (exit code 8 where one was).
    """
    from usfmae.client.site import Site
    from usfmae.core import audit as chain
    from usfmae.core.errors import SourceError

    log = Site.open(directory).audit_log
    if not log.exists():
        raise SourceError(f"audit log {log}", "does not exist", "restore it from backup")
    if action == "verify":
        count = chain.verify(log, head)
        last = list(chain.entries(log))[-1]["hash"] if count else ""
        if as_json:
            print_json({"entries": count, "head": last, "sound": True})
        else:
            click.echo(f"{count} entries, chain sound, head {last}")
        return
    entries = list(chain.entries(log))
    if as_json:
        print_json(entries)
        return
    for entry in entries:
        columns = ("time", "actor", "event", "status", "previous", "hash")
        rest = " ".join(f"{k}={v}" for k, v in entry.items() if k not in columns)
        click.echo(f"{entry['time']}  {entry['event']:18s} {entry['status']:8s} {rest}")
