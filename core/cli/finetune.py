"""`usfmae finetune`: a whole encoder trained on a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from usfmae.core.cli.probe import data_option, task_option, weights_option
from usfmae.core.cli.shell import configured, print_json


@click.command(
    help="""Fine-tune an encoder on a benchmark: the paper's grid, early stopping on a validation part, several seeds.

    Every run is kept below --out; the same command again goes on where it was cut."""
)
@task_option
@data_option
@click.option(
    "--model", required=True, help="Checkpoint, timm:NAME[=FILE], efficientnet-lite0 or random:CHECKPOINT[@SEED]."
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of runs and report."
)
@click.option("--split", "splits", multiple=True, help="Only these splits, such as fold-1; repeatable.")
@weights_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@configured
def finetune(
    task: str,
    data: Path,
    model: str,
    out: Path,
    splits: tuple[str, ...],
    weights: Path | None,
    as_json: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
) -> None:
    from usfmae.core.bench.encoders import load as load_encoder
    from usfmae.core.bench.evaluate import finetuned, line
    from usfmae.core.bench.tasks import load as load_task
    from usfmae.core.bench.tasks.base import only
    from usfmae.core.config import Settings, load
    from usfmae.core.errors import UsageError

    settings = load(Settings, config_file, overrides)[0].bench
    if model == "pixels":
        raise UsageError("model pixels", "has nothing to train", "use 'usfmae probe'")
    loaded = only(load_task(task, data, settings.seed), splits)
    for note in loaded.notes:
        click.echo(f"note: {note}", err=True)
    report = finetuned(loaded, lambda: load_encoder(model, settings.pooling, weights), settings, out, _told)
    if as_json:
        print_json(report)
        return
    for part, found in report["scores"].items():
        click.echo(line(f"{model} {part}", found))


def _told(run: Any, kept: bool) -> None:
    choice = run.choice
    click.echo(
        f"{run.split} lr {choice.lr:g} wd {choice.weight_decay:g} batch {choice.batch} seed {run.seed}: validation "
        f"{100 * run.validation:.1f}, epoch {run.best_epoch} of {run.epochs}, {run.seconds:.0f} s"
        + (" (kept)" if kept else ""),
        err=True,
    )
