"""`usfmae verify`: is this checkpoint, release or audit log what it says it is?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from usfmae.core.cli.shell import print_json

OWN_KEY = "coordinator.pub.pem"  # inside a release


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
    from usfmae.core.federated import lineage
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
    from usfmae.core.checkpoint import FORMAT, load, read_metadata

    if read_metadata(path).get("format") == FORMAT:
        load(path)
