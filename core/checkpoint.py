"""Weights on disk: one safetensors file that says what it is.

The metadata (strings, JSON where structured) carry: `model` and `train` settings (architecture, heads, mask ratio,
norm_pix, mean, std), `recipe` (hash of both), `content` (hash of the weights), `trail`, and whatever the caller adds,
such as `corpus` and `step`. Heads and mask ratio are stated, never guessed: weights for 16 heads fit 8 without error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from usfmae.core.config import ModelSettings, TrainRecipe, TrainSettings
from usfmae.core.config.train import read_recipe
from usfmae.core.errors import CheckpointError
from usfmae.core.files import replacing
from usfmae.core.types import Checkpoint, Trail, recipe_id

FORMAT = "usfmae-1"
DECODER = ("decoder_", "mask_token")  # prefixes of every tensor that is not the encoder's


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory."""

    tensors: dict[str, Tensor]
    model: ModelSettings
    train: TrainRecipe
    metadata: dict[str, str]
    trail: Trail


def describe(
    model: ModelSettings, train: TrainSettings, *, parents: tuple[str, ...] = (), **more: str | int | float
) -> dict[str, str]:
    """Metadata for `save`. `parents`: content ids of the checkpoints these weights were made from."""
    settings = {"model": model.model_dump(mode="json"), "train": TrainRecipe.of(train).model_dump(mode="json")}
    recipe = recipe_id(settings)
    return {
        **{name: json.dumps(values, sort_keys=True) for name, values in settings.items()},
        "recipe": recipe,
        "trail": json.dumps(dataclasses.asdict(Trail("", parents, recipe))),
        **{name: str(value) for name, value in more.items()},
    }


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Checkpoint:
    """Write weights atomically: the old file or the whole new one. Raises ResourceError where the disk is full."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = tensors_id(plain)
    trail = dataclasses.replace(trail_of(metadata), id=content)
    stated = {**metadata, "format": FORMAT, "content": content, "trail": json.dumps(dataclasses.asdict(trail))}
    write_tensors(path, plain, stated)
    return Checkpoint(path, stated, trail)


def load(path: Path) -> Loaded:
    """Read and check a checkpoint. CheckpointError where it is no checkpoint of ours, or damaged."""
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path}",
            "is safetensors without usfmae's metadata",
            "make it one of ours first: 'usfmae import FILE --out CHECKPOINT'",
        )
    if tensors_id(tensors) != metadata.get("content"):
        raise CheckpointError(f"checkpoint {path}", "its weights do not match their hash: damaged", "fetch it again")
    try:
        model = ModelSettings.model_validate_json(metadata["model"])
        train = TrainRecipe.model_validate_json(metadata["train"])
    except (KeyError, ValueError) as error:
        problem = str(error).splitlines()[0]
        raise CheckpointError(f"checkpoint {path}", f"metadata unreadable: {problem}", "update usfmae") from None
    return Loaded(tensors, model, train, metadata, trail_of(metadata))


def tensors_id(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names (sorted), types, shapes and bytes: equal weights, equal id, whatever file they lie in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}\0{','.join(map(str, tensor.shape))}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def encoder_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the encoder: what a federation exchanges and a downstream task loads."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(DECODER)}


def decoder_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other tensors: the decoder, its embedding and the mask token."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(DECODER)}


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of any safetensors file, without reading its tensors. Raises CheckpointError."""
    return _read(path, with_tensors=False)[1]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of any safetensors file. Raises CheckpointError."""
    return _read(path, with_tensors=True)


def _read(path: Path, with_tensors: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys()) if with_tensors else []
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path}", "does not exist", "give the path of a .safetensors file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {path}", f"is not readable as safetensors: {error}", "fetch it again"
        ) from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Any safetensors file, atomically. Raises ResourceError where the disk is full."""
    with replacing(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # what a new file has here; the library's own would be for its owner alone
        save_file(dict(tensors), partial, dict(metadata))
        partial.chmod(mode & 0o777)


def trail_of(metadata: Mapping[str, str]) -> Trail:
    try:
        values: dict[str, Any] = json.loads(metadata.get("trail", "{}"))
        return Trail(**{**values, "parents": tuple(values.get("parents", ()))})
    except (ValueError, TypeError):
        raise CheckpointError("checkpoint metadata 'trail'", "is unreadable", "fetch the file again") from None


def recipe_of(text: str) -> tuple[ModelSettings, TrainRecipe]:
    """The settings in a recipe, the canonical JSON `{"model": ..., "train": ...}`. Raises ConfigError."""
    recipe = read_recipe(text)
    return recipe.model, recipe.train


def recipe_text(model: ModelSettings, train: TrainSettings) -> str:
    """Both settings as canonical JSON: the `recipe` of a TrainRequest."""
    values = {"model": model.model_dump(mode="json"), "train": TrainRecipe.of(train).model_dump(mode="json")}
    return json.dumps(values, sort_keys=True, separators=(",", ":"))
