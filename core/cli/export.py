"""`usfmae export`: a checkpoint for another library."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.core.cli.shell import print_json


@click.command(help="Write a checkpoint for timm, Hugging Face, facebookresearch MAE or ONNX, with a model card.")
@click.option("--model", "path", required=True, type=click.Path(path_type=Path), help="Checkpoint (.safetensors).")
@click.option("--to", "target", required=True, type=click.Choice(["mae", "timm", "hf", "onnx"]), help="Format.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the files.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def export(path: Path, target: str, out: Path, as_json: bool) -> None:
    from usfmae.core.export import export as write
    from usfmae.core.mae.weights.init_weights import load_any

    done = write(load_any(path), target, out)
    if as_json:
        print_json(
            {
                "target": done.target,
                "files": [str(file) for file in done.files],
                "difference": done.difference,
                "tolerance": done.tolerance,
            }
        )
        return
    for file in done.files:
        click.echo(file)
    checked = "not compared: the library is not installed" if done.difference is None else f"{done.difference:.2g}"
    click.echo(f"largest difference to {target}'s own output: {checked} (allowed {done.tolerance:g})", err=True)
