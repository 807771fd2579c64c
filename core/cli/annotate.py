"""`usfmae annotate`: a page on this machine to label what is burnt into pictures."""

from __future__ import annotations

import threading
from pathlib import Path

import click

from usfmae.core.cli.shell import NewFile


@click.command(
    help="""Label what is burnt into the pictures of FOLDER, on a page of this machine.

    Draw boxes and strokes over text, calipers, arrows and the like. They are saved at once, into one JSON file that
    holds names, hashes, sizes and shapes, and nothing of a picture. Run the same again to go on. The page answers on
    loopback alone and asks for the token that is printed here. Of a clip the first frame is shown.

    \b
    usfmae annotate scans --labels scans.truth.json"""
)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--labels", type=NewFile(), help="File of labels; FOLDER's name and .truth.json, here, by default.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1; a free one by default.")
def annotate(folder: Path, labels: Path | None, port: int) -> None:
    from usfmae.core.annotate.page import labelling

    file = labels or Path(f"{folder.resolve().name}.truth.json")
    with labelling(folder, file, port) as page:
        click.echo(f"{len(page.labels.entries)} pictures, {page.labels.done} done; labels go to {file}", err=True)
        click.echo(f"open   {page.address}", err=True)
        click.echo(f"token  {page.token}", err=True)
        click.echo("end with Ctrl-C", err=True)
        threading.Event().wait()
