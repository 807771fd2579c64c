"""`usfmae finetune`: a whole encoder trained on a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from usfmae.core.cli.probe import data_option, short, task_option, weights_option
from usfmae.core.cli.shell import NewFolder, configured, print_json


@click.command(
    help="""Fine-tune an encoder on a benchmark: a small grid, early stopping on a validation part, several seeds.

    Every run is kept below --out; the same command again goes on where it was cut. The weights of the run with the best
    validation score stay as OUT/classifier.safetensors, and as a timm model in OUT/classifier.

    Example: usfmae finetune --task bus-bra --data BUSBRA.zip --model CKPT --out OUT"""
)
@task_option
@data_option
@click.option(
    "--model", required=True, help="Checkpoint, timm:NAME[=FILE], efficientnet-lite0 or random:CHECKPOINT[@SEED]."
)
@click.option("--out", required=True, type=NewFolder(), help="Folder of runs and report.")
@click.option(
    "--recipe",
    type=click.Choice(["good", "paper"]),
    help="good (default): mild augmentation, encoder 3e-5, head 1e-3. paper: its grid and augmentations.",
)
@click.option(
    "--export", "targets", multiple=True, type=click.Choice(["timm", "onnx"]), help="Repeatable; default: timm."
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
    recipe: str | None,
    targets: tuple[str, ...],
    splits: tuple[str, ...],
    weights: Path | None,
    as_json: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
) -> None:
    from usfmae.core.bench import classifier
    from usfmae.core.bench.encoders import load as load_encoder
    from usfmae.core.bench.evaluate import finetuned, table
    from usfmae.core.bench.tasks import load as load_task
    from usfmae.core.bench.tasks.base import only
    from usfmae.core.config import Settings, load
    from usfmae.core.errors import UsageError, needs
    from usfmae.core.report.bench import write_finetune

    chosen = (f"bench.finetune.recipe={recipe}",) if recipe else ()
    settings = load(Settings, config_file, (*chosen, *overrides))[0].bench
    if model == "pixels":
        raise UsageError("model pixels", "has nothing to train", "use 'usfmae probe'")
    loaded = only(load_task(task, data, settings.seed), splits)
    for note in loaded.notes:
        click.echo(f"note: {note}", err=True)
    if "onnx" in targets:
        needs("onnx", "onnx")  # said before the training, not after it
    report = finetuned(loaded, lambda: load_encoder(model, settings.pooling, weights), settings, out, _print_run)
    write_finetune(out / "report.html", report)
    for target in targets or ("timm",):
        if (out / classifier.WEIGHTS).exists():  # a model of timm's own leaves none
            folder = out / ("classifier" if target == "timm" else f"classifier-{target}")
            classifier.export(out / classifier.WEIGHTS, target, folder)
            click.echo(f"classifier for {target}: {folder}", err=True)
    if as_json:
        print_json(report)
        return
    for line in table([(f"{short(model)} {part}", scores) for part, scores in report["scores"].items()]):
        click.echo(line)


def _print_run(run: Any, is_cached: bool) -> None:
    choice = run.choice
    click.echo(
        f"{run.split} lr {choice.lr:g} wd {choice.weight_decay:g} batch {choice.batch} seed {run.seed}: validation "
        f"{100 * run.validation:.1f}, epoch {run.best_epoch} of {run.epochs}, {run.seconds:.0f} s"
        + (" (kept)" if is_cached else ""),
        err=True,
    )
