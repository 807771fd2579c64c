"""`usfmae-client status`: what the site is doing."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.client.cli.options import as_json, site_directory
from usfmae.core.cli.shell import print_json


@click.command()
@site_directory
@as_json
def status(directory: Path, as_json: bool) -> None:
    """What the site is doing, and since when.

    The agent's last word, the corpus, and what left. Works whether or not the agent runs.
    """
    from usfmae.client.report import summary
    from usfmae.client.site import Site

    fields = summary(Site.open(directory))
    if as_json:
        print_json(fields)
        return
    for key, value in fields.items():
        if value not in ("", None, {}):
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            click.echo(f"{key:12s} {shown}")
