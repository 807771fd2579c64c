"""`usfmae-server release`."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.core.cli.shell import print_json


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder to write.")
@click.option(
    "--benchmark",
    "benchmarks",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON results to put in the model card, as 'usfmae probe --json' prints them; repeatable.",
)
@click.option("--round", "number", type=click.IntRange(min=1), help="This round, where it may go out.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of coordinator.yaml.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def release(
    directory: Path,
    out: Path,
    benchmarks: tuple[Path, ...],
    number: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """The best encoder under the budget, signed, with a card.

    Write the best encoder under the forgetting budget, not the last one, to a signed folder with its model card and
    lineage. 'usfmae verify OUT --key coordinator.pub.pem' checks all of it offline.
    """
    from usfmae.server.layout import Layout
    from usfmae.server.release import release as write

    home = Layout(directory)
    done = write(home, home.settings(overrides), out, benchmarks, number)
    print_json(done) if as_json else click.echo(f"{done['folder']}\n{done['why']}")
