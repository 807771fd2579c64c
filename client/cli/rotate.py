"""`usfmae-client rotate`: new keys for this site."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.client.cli.options import site_directory


@click.command()
@site_directory
@click.option("--take", is_flag=True, help="Second step, once the coordinator has taken rotation.json.")
def rotate(directory: Path, take: bool) -> None:
    """New keys for this site, without enrolling anybody anew.

    First without --take: makes new keys and SITE/rotation.json, signed with the present key, for the coordinator
    ('usfmae-server site rotate DIR rotation.json'). Then stop the agent, call this again with --take, start it.
    """
    from usfmae.client import key_rotation
    from usfmae.client.site import Site
    from usfmae.core.keys import grouped

    site = Site.open(directory)
    if take:
        click.echo(f"new keys in place, fingerprint {grouped(key_rotation.take(site))}", err=True)
        return
    click.echo(
        f"send {key_rotation.ask(site)} to the coordinator; then: usfmae-client rotate {directory} --take", err=True
    )
