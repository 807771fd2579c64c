"""`usfmae pretrain`: train the masked autoencoder on corpora. Under `torchrun` every process takes a share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from usfmae.core.cli.shell import configured, print_json
from usfmae.core.errors import UsageError
from usfmae.core.mae import allocator

if TYPE_CHECKING:
    from usfmae.core.mae.pretrain import PretrainSummary
    from usfmae.core.mae.train import StepRecord


@click.command(
    help="Pretrain the masked autoencoder on corpora made by 'usfmae prepare'. Ctrl-C saves and stops; --resume goes "
    "on with the same result as if it had never stopped. Several GPUs: torchrun --nproc-per-node N --no-python "
    "usfmae pretrain ..."
)
@click.option(
    "--corpus", "corpora", multiple=True, type=click.Path(path_type=Path, file_okay=False), help="Repeatable."
)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the run.")
@click.option("--preset", type=click.Choice(["paper", "official-notebook", "tiny"]), help="Default: paper.")
@click.option("--init", type=click.Path(path_type=Path), help="Weights to start from: ours, .pth, timm or HF folder.")
@click.option("--decoder-heads", type=int, help="Decoder heads of --init where its file does not say (8 or 16).")
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the corpus.")
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps; overrides epochs.")
@click.option("--resume", "again", is_flag=True, help="Go on with the run in --out.")
@click.option("--cross-validate", "folds", type=click.IntRange(min=2), help="Choose from --grid by k grouped folds.")
@click.option("--grid", multiple=True, metavar="KEY=V1,V2 ...", help="Values to try, such as lr=3e-4,1e-3.")
@click.option("--device", help="cpu, cuda, cuda:1. Default: a GPU if there is one.")
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard events (the JSONL log is always written).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.argument("more_grid", nargs=-1, metavar="")
@configured
def pretrain(
    corpora: tuple[Path, ...],
    out: Path,
    preset: str | None,
    init: Path | None,
    decoder_heads: int | None,
    epochs: int | None,
    steps: int | None,
    again: bool,
    folds: int | None,
    grid: tuple[str, ...],
    device: str | None,
    tensorboard: bool,
    as_json: bool,
    more_grid: tuple[str, ...],
    config_file: Path | None,
    overrides: tuple[str, ...],
) -> None:
    if more_grid and not grid:
        raise UsageError(f"argument {more_grid[0]}", "not understood", "values to try belong to --grid")
    if not again and not corpora:
        raise UsageError("--corpus", "is missing", "name the folder that 'usfmae prepare' wrote")
    in_a_good_allocator(device)
    from usfmae.core.mae import pretrain as runs
    from usfmae.core.mae.distributed import joined
    from usfmae.core.mae.presets import configure

    named = {"train.epochs": epochs, "train.steps": steps, "model.decoder_heads": decoder_heads}
    overrides += tuple(f"{key}={value}" for key, value in named.items() if value is not None)
    with joined(runs.free_device(device)) as place, watching(out, tensorboard) as on_step:
        how: dict[str, Any] = {"device": place, "on_step": on_step}
        if again:
            summary = runs.resume(out, **how)
        else:
            how |= {"init": init, "heads_stated": decoder_heads is not None}
            settings = configure(preset, config_file, overrides)
            if folds:
                from usfmae.core.mae.cross_validation import select

                settings = select(corpora, out, settings, folds, [*grid, *more_grid], **how)
            summary = runs.pretrain(corpora, out, settings, **how)
    if is_first():
        tell(summary, as_json)
    if not summary.finished:
        raise KeyboardInterrupt


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
def watching(out: Path, tensorboard: bool) -> Iterator[Callable[[StepRecord, int], bool | None]]:
    """Progress on stderr, TensorBoard if asked; the callback is True once Ctrl-C or SIGTERM came."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    stopped: list[int] = []
    before = {
        number: signal.signal(number, lambda n, _: stopped.append(n)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    writer = _tensorboard(out) if tensorboard and is_first() else None
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), disable=not is_first()) as progress:
        task = progress.add_task("starting")

        def on_step(record: StepRecord, steps: int) -> bool:
            text = f"loss {record.loss:.4f}  lr {record.lr:.2e}  {record.images_per_second:.1f} images/s"
            progress.update(task, completed=record.step, total=steps, description=text)
            if writer:
                for name in ("loss", "lr", "grad_norm", "images_per_second", "data_wait"):
                    writer.add_scalar(name, getattr(record, name), record.step)
            return bool(stopped)

        try:
            yield on_step
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if writer:
                writer.close()


def _tensorboard(out: Path) -> Any:
    from usfmae.core.optional import needs

    needs("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"))
