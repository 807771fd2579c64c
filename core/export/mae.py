"""facebookresearch/mae: a `.pth` holding `{"model": tensors}`, encoder and decoder under their names."""

from __future__ import annotations

from pathlib import Path

import torch

from usfmae.core.checkpoint import Loaded
from usfmae.core.export.target import ExportOptions
from usfmae.core.files import replacing
from usfmae.core.mae.weights.foreign_files import read_stored

TOLERANCE = 0.0
USE = 'tensors = torch.load("mae.pth", weights_only=True)["model"]'
WEIGHTS = "mae.pth"


def write(loaded: Loaded, out: Path, options: ExportOptions = ExportOptions()) -> list[Path]:
    # Through an open file torch keeps the operating system's error, such as a full disk.
    with replacing(out / WEIGHTS) as partial, partial.open("wb") as file:
        torch.save({"model": loaded.tensors}, file)
    return [out / WEIGHTS]


def difference(loaded: Loaded, out: Path) -> float:
    theirs = read_stored(out / WEIGHTS).tensors
    if theirs.keys() != loaded.tensors.keys():
        return float("inf")
    return max(float((theirs[name] - tensor).abs().max()) for name, tensor in loaded.tensors.items())
