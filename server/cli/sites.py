"""`usfmae-server site add|list|capacity|revoke|rotate`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from usfmae.core.cli.shell import as_json, print_json
from usfmae.server.cli import federation_directory

if TYPE_CHECKING:
    from usfmae.server.layout import Layout


@click.group()
def site() -> None:
    """Enrol, list, revoke hospitals; take their new keys.

    A running aggregator follows within a second.

    \b
    usfmae-server site add federation enrol.json --capacity 12000
    usfmae-server site list federation
    usfmae-server site capacity federation st-olav 15000
    usfmae-server site rotate federation rotation.json
    usfmae-server site revoke federation st-olav
    """


@site.command()
@federation_directory
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--capacity", type=click.IntRange(1), metavar="IMAGES", help="Images you have confirmed with the hospital."
)
@as_json
def add(directory: Path, file: Path, capacity: int | None, as_json: bool) -> None:
    """Enrol the hospital that made the enrol.json FILE (usfmae-client init).

    Without --capacity the hospital's own claim of images is not believed: it weighs at most the fair share."""
    from usfmae.core.federated import enrolment
    from usfmae.core.keys import public_signing_key, telephone
    from usfmae.server import sites

    text = "enrolled {name} ({site}), {capacity} images" + ("" if capacity else " by its own claim, not confirmed")
    done = sites.add(_home(directory), file, capacity=capacity)
    spoken = telephone(public_signing_key(enrolment.load(file).signing_key, str(file)))
    _say({**done, "telephone": spoken}, as_json, text + "\ncompare by telephone with its init: {telephone}")


@site.command()
@federation_directory
@click.argument("name")
@click.argument("images", type=int)
@as_json
def capacity(directory: Path, name: str, images: int, as_json: bool) -> None:
    """Vouch for the IMAGES of the enrolled hospital NAME: merges weigh it by them, up to the cap."""
    from usfmae.server import sites

    _say(sites.confirm(_home(directory), name, images), as_json, "{name}: {capacity} images, confirmed")


@site.command("list")
@federation_directory
@as_json
def list_(directory: Path, as_json: bool) -> None:
    """Every hospital that was ever enrolled, and when it was last connected."""
    from usfmae.server import sites

    rows = sites.listed(_home(directory))
    if as_json:
        print_json(rows)
        return
    for row in rows:
        seen = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["seen"])) if row["seen"] else "never"
        claim = "" if row["confirmed"] else " (its own claim)"
        click.echo(f"{row['name']:24s} {row['state']:8s} {row['site']}  capacity {row['capacity']}{claim}  seen {seen}")


@site.command()
@federation_directory
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
def revoke(directory: Path, name: str, yes: bool, as_json: bool) -> None:
    """Cut the hospital NAME off, also in the middle of a round. Its key can never be enrolled again.

    Asks for the name again where a person types; a script says --yes.
    """
    from usfmae.core.errors import UsageError
    from usfmae.server import sites

    if not yes:
        if not _asks():
            raise UsageError(f"revoke {name}", "cannot be undone", "say --yes where nobody can be asked")
        if click.prompt(f"This cannot be undone. Type {name} to revoke it", default="", show_default=False) != name:
            raise UsageError(f"revoke {name}", "was not confirmed", "nothing was changed")
    _say(sites.revoke(_home(directory), name), as_json, "revoked {name} ({site})")


@site.command()
@federation_directory
@click.argument("file", type=click.Path(path_type=Path))
@as_json
def rotate(directory: Path, file: Path, as_json: bool) -> None:
    """Take the new keys of the rotation.json FILE (usfmae-client rotate). No other site has to do anything."""
    from usfmae.server import sites

    _say(sites.rotate(_home(directory), file), as_json, "{name}: {replaces} -> {site}")


def _asks() -> bool:
    """Whether a person sits there."""
    return sys.stdin.isatty()


def _home(directory: Path) -> Layout:
    from usfmae.server.layout import Layout

    return Layout(directory)


def _say(done: Mapping[str, Any], as_json: bool, text: str) -> None:
    print_json(done) if as_json else click.echo(text.format(**done))
