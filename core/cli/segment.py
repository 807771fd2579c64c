"""`usfmae segment`: a light head on an encoder, for masks instead of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from usfmae.core.bench.segmentation import SEGMENTATIONS
from usfmae.core.cli.probe import weights_option
from usfmae.core.cli.shell import configured, print_json


@click.command(
    help="""Segment with an encoder: a light head on its patches, Dice and IoU with intervals.

    The encoder is frozen, or trained too with --finetune. Tasks: BUS-BRA and MMOTU-2D with their masks and official
    splits, or a folder of your own with images/ and masks/ of equal names, or x_mask.png beside x.png.

    Example: usfmae segment --task bus-bra --data BUSBRA.zip --model CKPT --baseline random:CKPT"""
)
@click.option("--task", required=True, type=click.Choice(tuple(SEGMENTATIONS)), help="Benchmark.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Its folder or zip.")
@click.option("--model", required=True, help="Checkpoint, timm:NAME[=FILE] or random:CHECKPOINT[@SEED].")
@click.option("--baseline", "baselines", multiple=True, help="Further model; repeatable.")
@click.option("--finetune", is_flag=True, help="Train the encoder too.")
@click.option("--split", "splits", multiple=True, help="Only these splits, such as fold-1; repeatable.")
@weights_option
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Save report.json and a row an image here."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@configured
def segment(
    task: str,
    data: Path,
    model: str,
    baselines: tuple[str, ...],
    finetune: bool,
    splits: tuple[str, ...],
    weights: Path | None,
    out: Path | None,
    as_json: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
) -> None:
    from dataclasses import replace

    from usfmae.core.bench.encoders import load as load_encoder
    from usfmae.core.bench.evaluate import safe_name, save_json
    from usfmae.core.bench.features import aspect_of
    from usfmae.core.bench.segmentation.segment import scores
    from usfmae.core.bench.segmentation.segment import segment as run
    from usfmae.core.bench.segmentation.tasks import load as load_task
    from usfmae.core.bench.tasks.base import only
    from usfmae.core.config import Settings, load

    chosen = ("bench.segment.finetune=true",) if finetune else ()
    settings = load(Settings, config_file, (*chosen, *overrides))[0].bench
    loaded = load_task(task, data, settings.seed)
    loaded = replace(loaded, images=only(loaded.images, splits))
    for note in loaded.images.notes:
        click.echo(f"note: {note}", err=True)
    reports: list[dict[str, Any]] = []
    for spec in (model, *baselines):
        build = lambda spec=spec: load_encoder(spec, settings.pooling, weights)  # noqa: E731
        aspect = aspect_of(build(), settings)
        report = lambda split, dice, spec=spec: click.echo(  # noqa: E731
            f"{spec} {split}: validation Dice {100 * dice:.1f}", err=True
        )
        overlaps = run(loaded, build, settings.segment, aspect, report)
        figures = scores(overlaps, settings.resamples, settings.seed)
        reports.append({"model": spec, "aspect": aspect, "images": len(overlaps), "scores": figures})
        if out:
            rows = [f"{o.id},{o.split},{o.dice:.4f},{o.iou:.4f}" for o in overlaps]
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{safe_name(spec)}.csv").write_text("\n".join(["id,split,dice,iou", *rows]) + "\n")
        if not as_json:
            shown = "  ".join(
                f"{name} {100 * v['value']:.1f} ({100 * v['low']:.1f}-{100 * v['high']:.1f})"
                for name, v in figures.items()
            )
            click.echo(f"{spec:<34} {shown}")
    result = {"task": task, "finetuned": settings.segment.finetune, "models": reports}
    if out:
        save_json(out / "report.json", result)
    if as_json:
        print_json(result)
