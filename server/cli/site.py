"""`usfmae-server site add|list|revoke`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from usfmae.core.cli.shell import print_json


@click.group()
def site() -> None:
    """Enrol, list and revoke hospitals. A running aggregator follows within a second."""


directory_argument = click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
json_option = click.option("--json", "as_json", is_flag=True, help="Report as JSON.")


@site.command()
@directory_argument
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def add(directory: Path, file: Path, as_json: bool) -> None:
    """Enrol the hospital that made the enrol.json FILE (usfmae-client init)."""
    from usfmae.server import sites
    from usfmae.server.home import Home

    added = sites.add(Home(directory), file)
    print_json(added) if as_json else click.echo(f"enrolled {added['name']} ({added['site']})")


@site.command("list")
@directory_argument
@json_option
def list_(directory: Path, as_json: bool) -> None:
    """Every hospital that was ever enrolled, and when it was last connected."""
    from usfmae.server import sites
    from usfmae.server.home import Home

    found = sites.listed(Home(directory))
    if as_json:
        print_json(found)
        return
    for row in found:
        seen = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["seen"])) if row["seen"] else "never"
        click.echo(f"{row['name']:24s} {row['state']:8s} {row['site']}  capacity {row['capacity']}  seen {seen}")


@site.command()
@directory_argument
@click.argument("name")
@json_option
def revoke(directory: Path, name: str, as_json: bool) -> None:
    """Cut the hospital NAME off, also in the middle of a round. Its key can never be enrolled again."""
    from usfmae.server import sites
    from usfmae.server.home import Home

    revoked = sites.revoke(Home(directory), name)
    print_json(revoked) if as_json else click.echo(f"revoked {revoked['name']} ({revoked['site']})")


@site.command()
@directory_argument
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def rotate(directory: Path, file: Path, as_json: bool) -> None:
    """Take the new keys of the rotation.json FILE (usfmae-client rotate). No other site has to do anything."""
    from usfmae.server import sites
    from usfmae.server.home import Home

    done = sites.rotate(Home(directory), file)
    print_json(done) if as_json else click.echo(f"{done['name']}: {done['replaces']} -> {done['site']}")
