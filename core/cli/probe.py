"""`usfmae probe`: how good are an encoder's features, frozen?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from usfmae.core.bench.tasks import BENCHMARKS
from usfmae.core.cli.shell import NewFolder, configured, print_json

task_option = click.option("--task", required=True, type=click.Choice(tuple(BENCHMARKS)), help="Benchmark.")
data_option = click.option("--data", required=True, type=click.Path(path_type=Path), help="Its folder or zip.")
weights_option = click.option(
    "--weights",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of timm weight files (default: weights/).",
)
out_option = click.option("--out", type=NewFolder(), help="Save report.html, report.json and per-image figures.")


@click.command(
    help="""Frozen features of an encoder: kNN and logistic regression on every split of a benchmark.

    A model is a checkpoint, any file that 'usfmae import' reads, timm:NAME[=FILE], ultrasam:FILE, onnx:FILE, efficientnet-lite0, random:CHECKPOINT[@SEED] or pixels.
    Features are computed once for a model and kept.

    Example: usfmae probe --task bus-bra --data BUSBRA.zip --model CKPT --baseline random:CKPT"""
)
@task_option
@data_option
@click.option("--model", required=True, help="Checkpoint, or the name of a model.")
@click.option(
    "--baseline", "baselines", multiple=True, help="Further model to compare with, image by image; repeatable."
)
@click.option(
    "--corpus",
    "corpora",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="What --model was trained on: the benchmark's images are looked for in it; repeatable.",
)
@weights_option
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False), help="Folder of kept features.")
@click.option("--curve/--no-curve", default=True, show_default=True, help="Label efficiency at 1 to 100 % of patients.")
@out_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@configured
def probe(
    task: str,
    data: Path,
    model: str,
    baselines: tuple[str, ...],
    corpora: tuple[Path, ...],
    weights: Path | None,
    cache: Path | None,
    curve: bool,
    out: Path | None,
    as_json: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
) -> None:
    from usfmae.core.bench.encoders import load as load_encoder
    from usfmae.core.bench.evaluate import described, paired, probed
    from usfmae.core.bench.provenance import judged
    from usfmae.core.bench.tasks import load as load_task
    from usfmae.core.config import Settings, load

    settings = load(Settings, config_file, overrides)[0].bench
    loaded = load_task(task, data, settings.seed)
    _say(loaded.notes)
    # Every model is loaded before the first one is run: a wrong path costs nothing.
    encoders = [load_encoder(spec, settings.pooling, weights) for spec in (model, *baselines)]
    reports, by_model = [], []
    for encoder in encoders:
        report, predictions = probed(loaded, encoder, settings, cache, shown(encoder.name), curve)
        reports.append(report)
        by_model.append(predictions)
    tests = [
        {"first": model, "second": name, "head": head, **paired(by_model[0][head], other[head], settings)}
        for name, other in zip(baselines, by_model[1:], strict=True)
        for head in other
    ]
    standing = judged(model, loaded, corpora, settings.leak_bits)
    others = {name: judged(name, loaded).as_dict() for name in baselines}
    trained_on = {model: standing.as_dict(), **others}
    result = {"task": described(loaded), "models": reports, "paired": tests, "trained_on_it": trained_on}
    if out:
        _save(out, loaded, result, by_model)
    if as_json:
        print_json(result)
    else:
        _print(result)


def shown(name: str) -> Any:
    """A progress line on stderr where that is a terminal."""
    import sys

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{name}: features of {done:,} of {total:,} images", err=True, nl=done == total)

    return show


def short(spec: str) -> str:
    """A model's name without the folders of its file."""
    kind, colon, rest = spec.rpartition(":")
    return f"{kind}{colon}{Path(rest).name}"


def _say(notes: tuple[str, ...]) -> None:
    for note in notes:
        click.echo(f"note: {note}", err=True)


def _save(out: Path, task: Any, result: dict[str, Any], by_model: list[dict[str, Any]]) -> None:
    from usfmae.core.bench.evaluate import safe_name, save_json, save_predictions
    from usfmae.core.report.bench import write_probe

    for report, predictions in zip(result["models"], by_model, strict=True):
        for head, predictions_of_head in predictions.items():
            save_predictions(out / f"{safe_name(report['model'])}.{head}.csv", task, predictions_of_head)
    save_json(out / "report.json", result)
    write_probe(out / "report.html", result)


def _print(result: dict[str, Any]) -> None:
    from usfmae.core.bench.evaluate import table

    rows = [
        (f"{short(report['model'])} {head} {part}", scores)
        for report in result["models"]
        for head, parts in report["scores"].items()
        for part, scores in parts.items()
    ]
    for line in table(rows):
        click.echo(line)
    for name, verdict in result["trained_on_it"].items():
        click.echo(f"{short(name)}: {verdict['standing']} - {verdict['why']}")
    for test in result["paired"]:
        difference = test["balanced_accuracy"]
        click.echo(
            f"{short(test['first'])} - {short(test['second'])} ({test['head']}): balanced accuracy {100 * difference['difference']:+.1f} "
            f"({100 * difference['low']:+.1f} to {100 * difference['high']:+.1f}), p = {difference['p_bootstrap']:.3g}"
        )
