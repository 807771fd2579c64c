"""Commands on weights: import and export them, say what a file holds, verify an encoder's lineage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from usfmae.core.cli.shell import NewFile, NewFolder, print_json
from usfmae.core.export import TARGETS


@click.command(
    help="""Show what a checkpoint is: architecture, heads, recipe, lineage, size.

    \b
    usfmae inspect run/checkpoint.safetensors
    """
)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def inspect(path: Path, as_json: bool) -> None:
    facts = facts_of(path)
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            click.echo(f"{name}:")
            for inner, inner_value in value.items():
                click.echo(f"  {inner}: {inner_value}")
        else:
            click.echo(f"{name}: {value}")


def facts_of(path: Path) -> dict[str, Any]:
    """Of our checkpoints all the metadata; of other files what their tensors show. Raises CheckpointError."""
    from usfmae.core.checkpoint import encoder_of, read_metadata
    from usfmae.core.checkpoint_header import FORMAT
    from usfmae.core.mae.weights.init_weights import read

    metadata = read_metadata(path) if path.suffix == ".safetensors" and path.is_file() else {}
    start = read(path)
    facts: dict[str, Any] = {
        "file": str(path),
        "format": FORMAT if metadata.get("format") == FORMAT else "foreign",
        "content": start.id,
        "tensors": len(start.tensors),
        "values": sum(tensor.numel() for tensor in start.tensors.values()),
        "encoder_values": sum(tensor.numel() for tensor in encoder_of(start.tensors).values()),
        "decoder": start.has_decoder,
    }
    structured = ("model", "train", "trail", "datasets")
    facts |= {k: json.loads(v) if k in structured else v for k, v in metadata.items() if k not in facts}
    facts.setdefault("model", start.model.model_dump())
    if start.unstated:
        facts["note"] = f"nothing in this file states its {' and '.join(sorted(start.unstated))}: the usual are shown"
    return facts


@click.command(
    "import",
    help="""Make a checkpoint of ours from weights that others wrote.

    Read are the published USF-MAE, facebookresearch/mae with or without its training state, timm, Hugging Face ViT and
    ViTMAE, training states of Lightning and others. No code in the file is ever run. Heads show in no shape: where nothing states the decoder's, you do.

    Example: usfmae import USF-MAE_full_pretrain.pt --decoder-heads 16 --out usf-mae.safetensors""",
)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=NewFile(), help="The checkpoint to write.")
@click.option("--decoder-heads", type=click.IntRange(1), help="Decoder heads, where the file does not say (8 or 16).")
@click.option("--heads", type=click.IntRange(1), help="Encoder heads of a model of no published width.")
@click.option("--encoder-only", is_flag=True, help="Leave the decoder out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def import_(
    source: Path, out: Path, decoder_heads: int | None, heads: int | None, encoder_only: bool, as_json: bool
) -> None:
    from usfmae.core.checkpoint import encoder_of, save
    from usfmae.core.cli.checkpoints import facts_of
    from usfmae.core.errors import UsageError
    from usfmae.core.mae.weights.init_weights import load_any, read

    if out.suffix != ".safetensors":
        raise UsageError(
            f"--out {out}", "our checkpoints are safetensors", f"write --out {out.with_suffix('.safetensors')}"
        )
    start = read(source)
    if "decoder_heads" in start.unstated and decoder_heads is None and not encoder_only:
        raise UsageError(
            f"weights {source}",
            "do not say how many heads their decoder has, and it does not show",
            "name them: --decoder-heads 8 (USF-MAE's paper) or 16 (its notebook, facebookresearch), or --encoder-only",
        )
    loaded = load_any(source, heads, decoder_heads)
    tensors = encoder_of(loaded.tensors) if encoder_only else loaded.tensors
    save(out, tensors, loaded.metadata)
    if as_json:
        print_json(facts_of(out))
    else:
        click.echo(out)


OWN_KEY = "coordinator.pub.pem"  # inside a release


@click.command(
    help="""Check the weights of a checkpoint against their hash, a release folder against its manifest and signature,
    or an audit log (.jsonl) against its hash chain. No network is used.

    \b
    usfmae verify run/checkpoint.safetensors
    usfmae verify release --key coordinator.pub.pem
    """
)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path, dir_okay=False), help="Public key (PEM) of the coordinator.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def verify(path: Path, key: Path | None, as_json: bool) -> None:
    checked = verified(path, key)
    if as_json:
        print_json(checked)
        return
    for name, value in checked.items():
        click.echo(f"{name}: {value}")


def verified(path: Path, key: Path | None) -> dict[str, Any]:
    """What was checked and held; raises a UsfmaeError naming what did not."""
    from usfmae.core import audit, lineage, manifest
    from usfmae.core.checkpoint import load
    from usfmae.core.errors import ConfigError, UsageError
    from usfmae.core.keys import public_signing_key

    if path.is_dir():
        own = path / OWN_KEY
        used = key or (own if own.exists() else None)
        try:
            public = public_signing_key(used.read_text(), str(used)) if used else None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"key {used}", str(error), "give the coordinator's public key") from None
        # The folder's own key finds damage; only a key from elsewhere shows who signed.
        signature = (
            "holds" if key else f"holds for {OWN_KEY} in the folder: give --key" if used else "not checked: give --key"
        )
        listed = manifest.check(path, public)
        for name in listed["files"]:
            if name.endswith(".safetensors") and "optimizer" not in name:
                _content(path / name)
        held = {"release": str(path), "files": len(listed["files"]), "hashes": "hold", "signature": signature}
        return {**held, "lineage": f"{lineage.check(path)} rounds"} if lineage.NAME in listed["files"] else held
    if path.suffix == ".jsonl":
        if not path.exists():
            raise UsageError(f"audit log {path}", "does not exist", "give an existing file")
        return {"audit_log": str(path), "entries": audit.verify(path), "chain": "holds"}
    loaded = load(path)
    return {
        "checkpoint": str(path),
        "content": loaded.trail.id,
        "hash": "holds",
        "parents": list(loaded.trail.parents),
        "recipe": loaded.trail.recipe,
    }


def _content(path: Path) -> None:
    """A checkpoint of ours inside a release holds what its own metadata says."""
    from usfmae.core.checkpoint import load, read_metadata
    from usfmae.core.checkpoint_header import FORMAT

    if read_metadata(path).get("format") == FORMAT:
        load(path)


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
