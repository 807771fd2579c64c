"""`usfmae-client pause` and `resume`: the hospital's hand on the switch."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.client.cli.options import site_directory


@click.command()
@site_directory
def pause(directory: Path) -> None:
    """Stop training here, now; the site stays enrolled.

    A running training writes its checkpoint and ends within seconds; requests are declined until `resume`.
    """
    from usfmae.client import site_policy
    from usfmae.client.site import Site

    site_policy.pause(Site.open(directory))
    click.echo("paused", err=True)


@click.command()
@site_directory
def resume(directory: Path) -> None:
    """Go on after a pause.

    Train again when asked; a training that the pause cut short goes on at its checkpoint.
    """
    from usfmae.client import site_policy
    from usfmae.client.site import Site

    site_policy.resume(Site.open(directory))
    click.echo("resumed", err=True)
