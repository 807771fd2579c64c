"""`usfmae-client person` and `usfmae-server person`: who may log in to the page, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from usfmae.core.cli.shell import print_json

Note = Callable[..., object]


def person_group(keys_of: Callable[[Path], tuple[Path, Note]]) -> click.Group:
    """The commands; `keys_of` gives a directory's folder of keys and its way to the audit log."""
    directory = click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))

    @click.group("person")
    def person() -> None:
        """Tokens of named persons for the page, so that the audit log says who.

        \b
        usfmae-client person add SITE "Dr. Berg"        usfmae-server person add DIRECTORY "Dr. Berg"
        usfmae-client person list SITE                  usfmae-server person list DIRECTORY
        usfmae-client person remove SITE "Dr. Berg"     usfmae-server person remove DIRECTORY "Dr. Berg"
        """

    @person.command()
    @directory
    @click.argument("name")
    def add(directory: Path, name: str) -> None:
        """Make a token for NAME and print it, once; an older one of the same name ends."""
        from usfmae.core.web.access import People

        keys, note = keys_of(directory)
        token = People(keys).add(name)
        note("person.added", "ok", name=name)
        click.echo(token)

    @person.command()
    @directory
    @click.argument("name")
    def remove(directory: Path, name: str) -> None:
        """End the access of NAME, open sessions too."""
        from usfmae.core.web.access import People

        keys, note = keys_of(directory)
        People(keys).remove(name)
        note("person.removed", "ok", name=name)
        click.echo(f"{name} has no access any more", err=True)

    @person.command("list")
    @directory
    @click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
    def list_(directory: Path, as_json: bool) -> None:
        """The names that have a token."""
        from usfmae.core.web.access import People

        names = sorted(People(keys_of(directory)[0]).hashes())
        print_json(names) if as_json else click.echo(
            "\n".join(names) or "nobody by name; the token is in keys/page.token"
        )

    return person
