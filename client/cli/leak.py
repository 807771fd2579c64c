"""`usfmae-client leak`: what the last update, or a checkpoint, gives away of this site's patients."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.client.cli import site_directory
from usfmae.core.cli.shell import as_json, print_json


@click.command()
@site_directory
@click.option("--model", type=click.Path(path_type=Path), help="Try this checkpoint instead of the last update.")
@as_json
def leak(directory: Path, model: Path | None, as_json: bool) -> None:
    """Attacks on membership of the last update, with intervals.

    Drawn images and patients against held-out ones: by loss, by its fall and by moved features, each against what
    shuffled patients give, and what the change of the patch projection spans. An area under the curve of 0.5 is chance.
    The figures name nobody; print them with --json for the coordinator's model card. Nothing leaves by itself.

    \b
    usfmae-client leak st-olav
    usfmae-client leak st-olav --model release/weights.safetensors --json
    """
    from usfmae.client.leak import audit
    from usfmae.client.site import Site

    result = audit(Site.open(directory), model)
    if as_json:
        print_json(result)
        return
    for attack, sides in result["membership"].items():
        for side, one in sides.items():
            click.echo(
                f"{attack:15s} {side:9s} AUC {one['auc']:.3f} ({one['low']:.3f}-{one['high']:.3f}), by chance as often as "
                f"{one['chance']:.3f}, {one['members']} drawn, {one['others']} held out"
            )
    if "span" in result:
        click.echo(
            f"span            {result['span']['held'] or 'nothing seen'}: {result['span']['advantage_db']:.1f} dB"
        )
