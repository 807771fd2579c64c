"""Weights on disk: one safetensors file that says what it is (checkpoint_header.py)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from usfmae.core.checkpoint_header import FORMAT, trail_of
from usfmae.core.config import ModelSettings, TrainRecipe
from usfmae.core.errors import CheckpointError
from usfmae.core.files import replacing
from usfmae.core.types import Checkpoint, Trail

DECODER = ("decoder_", "mask_token")  # prefixes of every tensor that is not the encoder's


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory."""

    tensors: dict[str, Tensor]
    model: ModelSettings
    train: TrainRecipe
    metadata: dict[str, str]
    trail: Trail


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
