"""Weights that other libraries wrote, read under facebookresearch's names: .pth files, timm and Hugging Face folders.

Nothing but tensors is ever unpickled (`weights_only`): a pickle that would run code is refused. Forms found in the wild
are read too: a bare state dict (official USF-MAE), `state_dict`, `model_state_dict`, a `module.` prefix.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from usfmae.core.checkpoint import read_tensors
from usfmae.core.config import ModelSettings
from usfmae.core.errors import CheckpointError

WEIGHTS = "model.safetensors"  # in a timm or Hugging Face folder
WRAPPERS = ("model", "state_dict", "model_state_dict")

# facebookresearch name -> Hugging Face name, outside and inside a block.
OUTSIDE = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj.": "vit.embeddings.patch_embeddings.projection.",
    "norm.": "vit.layernorm.",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
    "decoder_embed.": "decoder.decoder_embed.",
    "decoder_norm.": "decoder.decoder_norm.",
    "decoder_pred.": "decoder.decoder_pred.",
}
STACKS = {"blocks.": "vit.encoder.layer.", "decoder_blocks.": "decoder.decoder_layers."}
INSIDE = {
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
    "attn.proj.": "attention.output.dense.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}
THIRDS = tuple(f"attention.attention.{part}." for part in ("query", "key", "value"))


def read_pth(path: Path) -> dict[str, Tensor]:
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


def timm_settings(config: Path) -> ModelSettings | None:
    """The encoder's architecture in a config.json of ours; None where the file does not state all of it."""
    names = {
        "image_size": "img_size",
        "patch_size": "patch_size",
        "width": "embed_dim",
        "depth": "depth",
        "heads": "num_heads",
    }
    try:
        arguments = json.loads(config.read_text())["model_args"]
        return ModelSettings(**{ours: arguments[theirs] for ours, theirs in names.items()})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def hf_settings(config: dict[str, int]) -> ModelSettings:
    """The architecture in a Hugging Face config. Raises CheckpointError where a key is missing."""
    names = {
        "image_size": "image_size",
        "patch_size": "patch_size",
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "decoder_width": "decoder_hidden_size",
        "decoder_depth": "decoder_num_hidden_layers",
        "decoder_heads": "decoder_num_attention_heads",
    }
    try:
        return ModelSettings(**{ours: config[theirs] for ours, theirs in names.items()})
    except (KeyError, ValueError) as error:
        raise CheckpointError("config.json", f"is no ViTMAE config: {error}", "give a ViTMAEForPreTraining") from None


def read_hf(path: Path) -> tuple[dict[str, Tensor], ModelSettings]:
    """Tensors by facebookresearch name, and the architecture, from a Hugging Face folder. Raises CheckpointError."""
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}/config.json", f"unreadable: {error}", "give a folder with both files") from None
    stored, _ = read_tensors(path / WEIGHTS)
    back_stacks, back_inside, back_outside = ({v: k for k, v in m.items()} for m in (STACKS, INSIDE, OUTSIDE))
    result: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        stack, inside = renamed_block(name, back_stacks)
        if inside.startswith(THIRDS[0]):
            parts = [stored.get(name.replace(THIRDS[0], third)) for third in THIRDS]
            if any(part is None for part in parts):
                raise CheckpointError(f"{path}: {name}", "its key or value is missing", "fetch the file again")
            result[f"{stack}attn.qkv.{inside.rsplit('.', 1)[1]}"] = torch.cat([p for p in parts if p is not None])
        elif not inside.startswith(THIRDS[1:]):
            result[stack + renamed_prefix(inside, back_inside if stack else back_outside)] = tensor
    return result, hf_settings(config)


def renamed_block(name: str, stacks: dict[str, str]) -> tuple[str, str]:
    """("blocks.3.norm1.bias") -> ("vit.encoder.layer.3.", "norm1.bias"); ("", name) outside the blocks."""
    for before, after in stacks.items():
        found = re.match(re.escape(before) + r"(\d+\.)", name)
        if found:
            return after + found[1], name[found.end() :]
    return "", name


def renamed_prefix(name: str, names: dict[str, str]) -> str:
    for before, after in names.items():
        if name.startswith(before):
            return after + name[len(before) :]
    raise CheckpointError(f"tensor {name}", "has no counterpart", "give a masked autoencoder's weights")
