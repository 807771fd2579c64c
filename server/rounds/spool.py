"""Admitted updates of the open round, one safetensors file a site: on disk before the ledger says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from usfmae.core.errors import CheckpointError
from usfmae.core.federated.codec import PayloadHash
from usfmae.core.files import rewriting, write_atomic
from usfmae.core.tensors import TensorFile, Writer
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger, Verdict


def path(home: Layout, number: int, site: str) -> Path:
    """`site` is a fingerprint from the ledger (16 hex digits), never text of a reply."""
    return home.spool / f"round-{number:05d}" / f"{site}.safetensors"


def note_record(home: Layout, number: int, site: str, record: Mapping[str, Any]) -> None:
    """Keep the signed record of a sealed update beside it: the custodian takes it from nobody but its site."""
    write_atomic(path(home, number, site).with_suffix(".json"), json.dumps(dict(record), sort_keys=True).encode())


def record(home: Layout, number: int, site: str) -> dict[str, Any]:
    """The signed record of a sealed update."""
    values = json.loads(path(home, number, site).with_suffix(".json").read_bytes())
    assert isinstance(values, dict)
    return values


@contextmanager
def storing(home: Layout, number: int, site: str, sizes: Mapping[str, int]) -> Iterator[Callable[[str, bytes], None]]:
    """Write an update atomically, tensor by tensor in the order of names, each as large as `sizes` says.

    It is written over the site's update of the round before. Nothing is kept where the block is left by an exception.
    ResourceError where the disk is full.
    """
    with rewriting(path(home, number, site), path(home, number - 1, site)) as file:
        writer = Writer(file, {name: (size,) for name, size in sizes.items()}, {}, "U8", hashed=False)
        yield writer.add
        writer.finish()


def forget_unnoted(home: Layout, ledger: Ledger, number: int) -> None:
    """Remove what a crash left between spooling and noting; the site is asked again and answers from its disk."""
    noted = set(ledger.verdicts(number))
    directory = home.spool / f"round-{number:05d}"
    for file in directory.glob("*") if directory.exists() else ():
        if file.stem not in noted or file.suffix not in (".safetensors", ".json"):
            file.unlink()


def damaged(home: Layout, verdict: Verdict) -> bool:
    """Whether the update on disk is no longer the one that was signed and admitted: after a restart, or a restore."""
    content = PayloadHash()
    try:
        with TensorFile(path(home, verdict.round, verdict.site)) as file:
            for name in file.shapes:
                content.add(name, file.raw(name))
    except CheckpointError:
        return True
    return content.id() != verdict.content


def clear(home: Layout, number: int) -> None:
    """Remove the spool of the rounds before this one; this one's is written over in the next."""
    for directory in home.spool.glob("round-*") if home.spool.exists() else ():
        if directory.name < f"round-{number:05d}":
            shutil.rmtree(directory, ignore_errors=True)
