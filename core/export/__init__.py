"""Checkpoints for other libraries. One file per target, each with the same four names.

write(loaded, out, options)   files for the other library in the folder `out`
difference(loaded, out)       largest absolute difference between our output and the other library's, reading `out`
TOLERANCE                     how large it may be
USE                           a line of code that loads the files, for the model card
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from usfmae.core.errors import CheckpointError, UsageError

if TYPE_CHECKING:  # the command's help lists the targets, and loads no torch for it
    from usfmae.core.checkpoint import Loaded
    from usfmae.core.export.target import ExportOptions

TARGETS = {  # name -> module, library that reads the result
    "mae": ("usfmae.core.export.mae", "torch"),
    "timm": ("usfmae.core.export.timm", "timm"),
    "hf": ("usfmae.core.export.hf", "transformers"),
    "hf-mae": ("usfmae.core.export.hf_mae", "transformers"),
    "onnx": ("usfmae.core.export.onnx", "onnxruntime"),
}


class Target(Protocol):
    TOLERANCE: float
    USE: str

    def write(self, loaded: Loaded, out: Path, options: ExportOptions) -> list[Path]: ...
    def difference(self, loaded: Loaded, out: Path) -> float: ...


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and how far the other library's output is from ours."""

    target: str
    files: Sequence[Path]
    difference: float | None  # None where the library is not installed, so nothing was compared
    tolerance: float


def export(loaded: Loaded, name: str, out: Path, options: ExportOptions | None = None) -> Exported:
    """Write a checkpoint for `name`, with a model card, and read it back with the real library where installed.

    Raises UsageError for an unknown target, CheckpointError where the other library's output differs.
    """
    if name not in TARGETS:
        raise UsageError(f"target {name}", "unknown", f"choose one of {', '.join(TARGETS)}")
    module, library = TARGETS[name]
    target: Target = importlib.import_module(module)
    from usfmae.core.export import card
    from usfmae.core.export.target import ExportOptions

    options = options or ExportOptions()
    out.mkdir(parents=True, exist_ok=True)
    files = [*target.write(loaded, out, options), card.write(loaded, name, target.USE, out, options)]
    if importlib.util.find_spec(library) is None:
        return Exported(name, files, None, target.TOLERANCE)
    difference = target.difference(loaded, out)
    if not difference <= target.TOLERANCE:
        raise CheckpointError(
            f"export to {name} in {out}",
            f"{library} differs from this model by {difference:.2g}, more than {target.TOLERANCE:g}",
            "do not use these files; report the version of the library",
        )
    return Exported(name, files, difference, target.TOLERANCE)
