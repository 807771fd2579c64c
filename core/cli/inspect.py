"""`usfmae inspect`: what a checkpoint is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from usfmae.core.cli.shell import print_json


@click.command(help="Show what a checkpoint is: architecture, heads, recipe, lineage, size.")
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
    from usfmae.core.checkpoint import FORMAT, encoder_of, read_metadata
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
