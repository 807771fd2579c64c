"""`usfmae-client evidence`: the folder for a security review."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.client.cli.options import as_json, site_directory
from usfmae.core.cli.shell import print_json


@click.command()
@site_directory
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Default: SITE/evidence-DATE.")
@click.option("--check", "to_check", is_flag=True, help="Compare the figures of the folder --out with its files.")
@as_json
def evidence(directory: Path, out: Path | None, to_check: bool, as_json: bool) -> None:
    """A folder that answers a security review.

    Versions and SBOM, whether the audit log is sound, what left, the egress controls as they are set, and drafts for a DPIA
    and a data permit. Every figure is a link to the file it comes from. No picture, no name, no path of a scan.

    \b
    usfmae-client evidence st-olav
    usfmae-client evidence st-olav --out review --check
    """
    from datetime import UTC, datetime

    from usfmae.client import evidence as folder
    from usfmae.client.site import Site

    site = Site.open(directory)
    place = out or directory / f"evidence-{datetime.now(UTC):%Y-%m-%d}"
    result = {"folder": str(place), "figures": folder.check(place)} if to_check else folder.write(site, place)
    if as_json:
        print_json(result)
        return
    for name, value in result.items():
        click.echo(f"{name:14s} {value}")
