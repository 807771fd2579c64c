"""facebookresearch/mae: a `.pth` holding `{"model": tensors}`, encoder and decoder under their names.

Reads the same, and the forms found in the wild: a bare state dict (official USF-MAE), `state_dict`,
`model_state_dict`, a `module.` prefix. Always with `weights_only`: a pickle that would run code is refused.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from usfmae.core.checkpoint import Loaded
from usfmae.core.errors import CheckpointError
from usfmae.core.files import replacing

TOLERANCE = 0.0
WEIGHTS = "mae.pth"
WRAPPERS = ("model", "state_dict", "model_state_dict")


def write(loaded: Loaded, out: Path) -> list[Path]:
    # Through an open file torch keeps the operating system's error, such as a full disk.
    with replacing(out / WEIGHTS) as partial, partial.open("wb") as file:
        torch.save({"model": loaded.tensors}, file)
    return [out / WEIGHTS]


def difference(loaded: Loaded, out: Path) -> float:
    theirs = read(out / WEIGHTS)
    if theirs.keys() != loaded.tensors.keys():
        return float("inf")
    return max(float((theirs[name] - tensor).abs().max()) for name, tensor in loaded.tensors.items())


def read(path: Path) -> dict[str, Tensor]:
    """Tensors by facebookresearch name. CheckpointError where the file holds anything but tensors."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"weights {path}", "do not exist", "give the path of a .pt or .pth file") from None
    except Exception as error:  # the unpickler raises anything on a hostile or cut file
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(
            f"weights {path}", f"not a plain file of tensors, refused: {reason}", "ask for safetensors or a state dict"
        ) from None
    for wrapper in WRAPPERS:
        if isinstance(values, dict) and isinstance(values.get(wrapper), dict):
            values = values[wrapper]
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()) or not values:
        raise CheckpointError(f"weights {path}", "holds no state dict", "give a state dict or {'model': state dict}")
    return {str(name).removeprefix("module."): tensor for name, tensor in values.items()}
