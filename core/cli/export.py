"""`usfmae export`: a checkpoint for another library."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.core.cli.shell import NewFolder, print_json
from usfmae.core.export import TARGETS


@click.command(
    help="""Write a checkpoint for timm, Hugging Face, facebookresearch MAE or ONNX, with a model card.

    hf is a plain ViT for features, hf-mae the masked autoencoder with its decoder. A classifier of 'usfmae finetune'
    (OUT/classifier.safetensors) goes to timm or onnx.

    Example: usfmae export --model run/checkpoint.safetensors --to timm --out encoder"""
)
@click.option(
    "--model", "path", required=True, type=click.Path(path_type=Path), help="Checkpoint, or what 'usfmae import' reads."
)
@click.option("--to", "target", required=True, type=click.Choice(tuple(TARGETS)), help="Format.")
@click.option("--out", required=True, type=NewFolder(), help="Folder for the files.")
@click.option("--opset", type=click.IntRange(1), help="ONNX opset; default: torch's own.")
@click.option("--ir-version", type=click.IntRange(3), help="ONNX IR version; default: torch's own.")
@click.option("--licence", help="Licence of the weights for the model card, such as apache-2.0.")
@click.option("--base-model", help="What it was made from, as a model hub names it, for the card.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def export(
    path: Path,
    target: str,
    out: Path,
    opset: int | None,
    ir_version: int | None,
    licence: str | None,
    base_model: str | None,
    as_json: bool,
) -> None:
    from usfmae.core.export import export as write
    from usfmae.core.export.target import ExportOptions
    from usfmae.core.mae.weights.init_weights import load_any

    if path.name == "classifier.safetensors":
        from usfmae.core.bench import classifier

        for file in classifier.export(path, target, out):
            click.echo(file)
        return
    written = write(load_any(path), target, out, ExportOptions(opset, ir_version, licence, base_model))
    if as_json:
        print_json(
            {
                "target": written.target,
                "files": [str(file) for file in written.files],
                "difference": written.difference,
                "tolerance": written.tolerance,
            }
        )
        return
    for file in written.files:
        click.echo(file)
    checked = (
        "not compared: the library is not installed" if written.difference is None else f"{written.difference:.2g}"
    )
    click.echo(f"largest difference to {target}'s own output: {checked} (allowed {written.tolerance:g})", err=True)
