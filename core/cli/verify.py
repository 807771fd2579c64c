"""`usfmae verify`: is this checkpoint, release or audit log what it says it is?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from usfmae.core.cli.shell import print_json


@click.command(
    help="Check the weights of a checkpoint against their hash, a release folder against its manifest and signature, "
    "or an audit log (.jsonl) against its hash chain. No network is used."
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
    from usfmae.core import audit, manifest
    from usfmae.core.checkpoint import load
    from usfmae.core.errors import ConfigError, UsageError
    from usfmae.core.keys import public_signing_key

    if path.is_dir():
        try:
            public = public_signing_key(key.read_text(), str(key)) if key else None
        except OSError as error:
            raise ConfigError(f"key {key}", error.strerror or str(error), "give the coordinator's public key") from None
        listed = manifest.check(path, public)
        for name in listed["files"]:
            if name.endswith(".safetensors") and "optimizer" not in name:
                _content(path / name)
        signature = "holds" if key else "not checked: give --key"
        return {"release": str(path), "files": len(listed["files"]), "hashes": "hold", "signature": signature}
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
    from usfmae.core.checkpoint import FORMAT, load, read_metadata

    if read_metadata(path).get("format") == FORMAT:
        load(path)
