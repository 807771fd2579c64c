"""`usfmae-server leak`: what a release gives away of images that the coordinator has."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.core.cli.shell import as_json, print_json


@click.command()
@click.argument("release", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--members", required=True, type=click.Path(path_type=Path, exists=True), help="Corpus trained on.")
@click.option("--others", required=True, type=click.Path(path_type=Path, exists=True), help="Corpus never trained on.")
@click.option("--before", type=click.Path(path_type=Path, exists=True), help="An earlier release, for site inference.")
@as_json
def leak(release: Path, members: Path, others: Path, before: Path | None, as_json: bool) -> None:
    """Attacks on membership of a release, with intervals.

    Two corpora of the same kind of pictures, one of them trained on. With --before, also which of the two the rounds
    between two releases learned from. Sites measure the same against their own held-out patients: usfmae-client leak.

    \b
    usfmae-server leak release --members replay --others panel --json
    """
    from usfmae.server.releases.leak_results import audit

    result = audit(release, members, others, before)
    if as_json:
        print_json(result)
        return
    for attack, sides in result["membership"].items():
        for side, one in sides.items():
            click.echo(f"{attack:10s} {side:9s} AUC {one['auc']:.3f} ({one['low']:.3f}-{one['high']:.3f})")
