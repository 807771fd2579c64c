"""`usfmae-client evaluate`: an encoder on this site's own held-out scans."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.client.cli.options import as_json, site_directory
from usfmae.core.cli.shell import print_json


@click.command()
@site_directory
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Checkpoint (.safetensors).")
@click.option("--panel", type=click.Path(path_type=Path), help="Write a PNG of reconstructions; it stays here.")
@as_json
def evaluate(directory: Path, model: Path, panel: Path | None, as_json: bool) -> None:
    """Masked loss of a checkpoint on this site's held-out scans.

    Masked loss on the patients no training step has seen, with this site's own decoder where it has one.
    """
    from usfmae.client.evaluate import evaluated
    from usfmae.client.site import Site

    evaluation = evaluated(Site.open(directory), model, panel)
    if as_json:
        print_json(evaluation)
        return
    click.echo(
        f"held-out masked loss {evaluation['loss']:.4f} on {evaluation['held_out']} of {evaluation['images']} images"
    )
