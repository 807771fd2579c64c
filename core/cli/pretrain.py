"""`usfmae pretrain`: train the masked autoencoder on corpora. Under `torchrun` every process takes a share."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from usfmae.core.cli.shell import NewFolder, configured, print_json
from usfmae.core.errors import CorpusError, UsageError, needs
from usfmae.core.mae import allocator

if TYPE_CHECKING:
    from collections.abc import Callable

    from usfmae.core.mae.pretrain import Hooks, Measured, PretrainSummary, Run
    from usfmae.core.mae.train import StepRecord

LOGGERS = ("tensorboard", "mlflow", "wandb")
SECONDS_BETWEEN_LINES = 20.0  # where there is no terminal
SIZES = {  # --arch -> width, depth, heads
    "vit-tiny": (192, 12, 3),
    "vit-small": (384, 12, 6),
    "vit-base": (768, 12, 12),
    "vit-large": (1024, 24, 16),
}


@click.command(
    help="""Pretrain the masked autoencoder on corpora made by 'usfmae prepare'.

    Ctrl-C and SIGTERM save and stop within seconds; --resume goes on with the same result as if it had never stopped,
    and with --steps N trains a run on beyond its end. Several GPUs: torchrun --nproc-per-node N --no-python usfmae
    pretrain ...

    Example: usfmae pretrain --corpus corpus --out run --preset tiny"""
)
@click.option(
    "--corpus", "corpora", multiple=True, type=click.Path(path_type=Path, file_okay=False), help="Repeatable."
)
@click.option("--out", required=True, type=NewFolder(), help="Folder of the run.")
@click.option("--preset", type=click.Choice(["paper", "official-notebook", "best", "tiny"]), help="Default: paper.")
@click.option("--arch", type=click.Choice(list(SIZES)), help="Size of the encoder. Default: the preset's, or --init's.")
@click.option(
    "--init",
    type=click.Path(path_type=Path),
    help="Weights to start from: ours, .pt, .pth, .ckpt, .bin, timm or Hugging Face folder.",
)
@click.option(
    "--teacher",
    type=click.Path(path_type=Path, exists=True),
    help="Frozen encoder whose features train.target=latents or mixture predicts; any form that --init takes.",
)
@click.option("--decoder-heads", type=int, help="Decoder heads of --init where its file does not say (8 or 16).")
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the corpus.")
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps; overrides epochs.")
@click.option("--resume", "again", is_flag=True, help="Go on with the run in --out.")
@click.option("--cross-validate", "folds", type=click.IntRange(min=2), help="Choose from --grid by k grouped folds.")
@click.option("--grid", multiple=True, metavar="KEY=V1,V2 ...", help="Values to try, such as lr=3e-4,1e-3.")
@click.option("--device", help="cpu, cuda, cuda:1. Default: a GPU if there is one.")
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=click.Choice(LOGGERS),
    help="Also log there; repeatable, remembered by --resume (log.jsonl is always written).",
)
@click.option("--tensorboard", is_flag=True, help="The same as --log tensorboard.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.argument("more_grid", nargs=-1, metavar="")
@configured
def pretrain(
    corpora: tuple[Path, ...],
    out: Path,
    preset: str | None,
    arch: str | None,
    init: Path | None,
    teacher: Path | None,
    decoder_heads: int | None,
    epochs: int | None,
    steps: int | None,
    again: bool,
    folds: int | None,
    grid: tuple[str, ...],
    device: str | None,
    logs: tuple[str, ...],
    tensorboard: bool,
    as_json: bool,
    more_grid: tuple[str, ...],
    config_file: Path | None,
    overrides: tuple[str, ...],
) -> None:
    logs += ("tensorboard",) if tensorboard else ()
    _check(corpora, out, again, logs, grid, more_grid)
    in_a_good_allocator(device)
    from usfmae.core.mae import pretrain as runs
    from usfmae.core.mae.device import joined
    from usfmae.core.mae.presets import configure

    place = runs.free_device(device)
    if again:
        options: dict[str, object] = {
            "--corpus": corpora,
            "--preset": preset,
            "--arch": arch,
            "--init": init,
            "--teacher": teacher,
            "--epochs": epochs,
        }
        options |= {"--decoder-heads": decoder_heads, "--config": config_file, "--grid": grid, "--set": overrides}
        _ignored({**options, "--cross-validate": folds})
    else:
        overrides = (*_named(arch, epochs, steps, decoder_heads), *overrides)
        settings = configure(preset, config_file, overrides)
        _check_teacher(settings.train.target, teacher, folds)
    start = runs.InitFile(init, decoder_heads is not None, teacher)
    with joined(place) as own, signals() as stopped:
        if folds and not again:
            from usfmae.core.mae.cross_validation import CrossValidation

            trials = CrossValidation(corpora, settings, folds, [*grid, *more_grid], start)
            settings = trials.select(out, own, lambda record, n: bool(stopped))
        run = runs.open_run(out, steps, logs) if again else runs.new_run(corpora, out, settings, start, logs)
        with watching(run, stopped) as hooks:
            summary = run.go(own, hooks)
    if is_first():
        tell(summary, as_json)
    if not summary.finished:
        raise KeyboardInterrupt


def _check(
    corpora: tuple[Path, ...],
    out: Path,
    again: bool,
    logs: tuple[str, ...],
    grid: tuple[str, ...],
    more_grid: tuple[str, ...],
) -> None:
    """What can be refused at once, before torch is loaded and a folder is made."""
    for name in logs:
        needs(name, name)
    if more_grid and not grid:
        raise UsageError(f"argument {more_grid[0]}", "not understood", "values to try belong to --grid")
    if again:
        if not (out / "run.json").exists():
            raise UsageError(f"--resume: {out}", "holds no run", "begin it without --resume")
        return
    if not corpora:
        raise UsageError("--corpus", "is missing", "name the folder that 'usfmae prepare' wrote")
    if is_first() and (out / "run.json").exists():
        raise UsageError(f"run {out}", "exists already", "add --resume, or give another --out")
    for corpus in corpora:
        if not (corpus / "shards").is_dir():
            raise CorpusError(f"corpus {corpus}", "holds no images", "run 'usfmae prepare SOURCE --corpus DIR' first")


def _check_teacher(target: str, teacher: Path | None, folds: int | None) -> None:
    """A teacher is given exactly where the target needs one."""
    if (target == "pixels") == (teacher is None):
        if teacher is not None and folds:
            raise UsageError("--cross-validate", "knows no teacher", "choose with pixels, or leave it out")
        return
    if teacher is None:
        raise UsageError(f"train.target={target}", "needs a frozen teacher", "give --teacher CHECKPOINT")
    raise UsageError("--teacher", "is not used by train.target=pixels", "add --set train.target=latents, or mixture")


def _named(arch: str | None, epochs: int | None, steps: int | None, decoder_heads: int | None) -> list[str]:
    """The options that stand for settings, as --set would give them."""
    named: dict[str, object] = {"train.epochs": epochs, "train.steps": steps, "model.decoder_heads": decoder_heads}
    if arch:
        named |= dict(zip(("model.width", "model.depth", "model.heads"), SIZES[arch], strict=True))
    return [f"{key}={value}" for key, value in named.items() if value is not None]


def _ignored(options: dict[str, object]) -> None:
    """A run goes on with its own settings: say so for every option that would change them."""
    for option, value in options.items():
        if value:
            click.echo(
                f"ignored with --resume: {option}; a run goes on with its own settings, only --steps can lengthen it",
                err=True,
            )


def in_a_good_allocator(device: str | None) -> None:
    """On a CPU, and where this is a process of its own: start again under jemalloc where that is installed."""
    on_gpu = any(Path("/dev").glob("nvidia[0-9]*")) if device is None else device != "cpu"
    if not on_gpu and click.get_current_context().find_root().info_name == "usfmae":
        allocator.relaunch()


def tell(summary: PretrainSummary, as_json: bool) -> None:
    """What the run came to: the checkpoint on stdout, the figures on stderr."""
    if not summary.finished:
        click.echo(f"saved at step {summary.step} of {summary.steps}; go on with --resume", err=True)
        return
    if as_json:
        print_json(summary.as_dict())
        return
    click.echo(summary.checkpoint)
    click.echo(f"step {summary.step}, loss {summary.loss:.4f}, {summary.images_per_second:.1f} images/s", err=True)
    if summary.held_out_loss is not None and summary.held_out_variance:
        share = summary.held_out_loss / summary.held_out_variance
        click.echo(f"held-out masked error {summary.held_out_loss:.4f}, {share:.3f} of the variance", err=True)


def is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def signals() -> Iterator[list[int]]:
    """A list that is no longer empty once Ctrl-C or SIGTERM came."""
    stopped: list[int] = []
    before = {
        number: signal.signal(number, lambda n, _: stopped.append(n)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def watching(run: Run, stopped: list[int]) -> Iterator[Hooks]:
    """Progress on stderr, as a bar or, without a terminal, as lines; and what the run's loggers want to know."""
    from usfmae.core.mae.pretrain import Hooks
    from usfmae.core.mae.train_log import LOGGERS, SCALARS

    with ExitStack() as stack:
        loggers = [LOGGERS[name](run.out, run.out.name, run.reached) for name in (run.logs if is_first() else ())]
        for logger in loggers:
            stack.callback(logger.close)
        show = stack.enter_context(progress_bar()) if is_first() else None

        def on_step(record: StepRecord, steps: int) -> bool:
            if show:
                show(record, steps)
            for logger in loggers:
                logger.scalars(record.step, {name: getattr(record, name) for name in SCALARS})
            return bool(stopped)

        def on_checkpoint(measured: Measured) -> None:
            for logger in loggers:
                values = {"held_out_loss": measured.held_out_loss}
                if measured.held_out_variance:
                    values["held_out_share_of_variance"] = measured.held_out_loss / measured.held_out_variance
                logger.scalars(measured.step, values)
                logger.picture(measured.step, measured.panel)

        yield Hooks(on_step, on_checkpoint, lambda: bool(stopped))


@contextmanager
def progress_bar() -> Iterator[Callable[[StepRecord, int], None]]:
    """Shows steps: a bar on a terminal; elsewhere the first step, the last, and one every 20 seconds, a line each."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task, lines = progress.add_task("first step"), Lines()

        def show(record: StepRecord, steps: int) -> None:
            text = f"loss {record.loss:.4f}  lr {record.lr:.2e}  {record.images_per_second:.1f} images/s"
            progress.update(task, completed=record.step, total=steps, description=text)
            if not console.is_terminal:
                lines.show(record.step, steps, text)

        yield show


class Lines:
    """Progress where there is no terminal: batch systems, log files, CI."""

    def __init__(self) -> None:
        self.began, self.first, self.last = time.monotonic(), 0, 0.0

    def show(self, step: int, steps: int, text: str) -> None:
        now = time.monotonic()
        if self.last and step != steps and now - self.last < SECONDS_BETWEEN_LINES:
            return
        if not self.last:
            self.first, self.began = step, now
        self.last = now
        pace = (now - self.began) / max(1, step - self.first)
        left = f"  {pace * (steps - step) / 60:.0f} min left" if step > self.first and step < steps else ""
        click.echo(f"step {step} of {steps}  {text}{left}", err=True)
