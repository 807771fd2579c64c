"""Hugging Face: `transformers.ViTMAEForPreTraining.from_pretrained(OUT)`, under the 4.x names (5.x converts them).

There q, k and v are three matrices; here one `qkv` holds them in that order. Two defaults there differ from MAE's:
`layer_norm_eps` 1e-12 and 16 decoder heads; both stand in the config we write.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from usfmae.core.checkpoint import Loaded, decoder_of, read_tensors, write_tensors
from usfmae.core.config import ModelSettings
from usfmae.core.errors import CheckpointError
from usfmae.core.export import model_of, probe_images
from usfmae.core.files import write_atomic

TOLERANCE = 1e-4
WEIGHTS = "model.safetensors"

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


def write(loaded: Loaded, out: Path) -> list[Path]:
    """Weights and config. CheckpointError for a checkpoint of an encoder alone."""
    if not decoder_of(loaded.tensors):
        raise CheckpointError("checkpoint", "holds no decoder, which ViTMAEForPreTraining needs", "export it to timm")
    write_tensors(out / WEIGHTS, renamed(loaded.tensors), {"format": "pt"})
    write_atomic(out / "config.json", json.dumps(config_of(loaded), indent=2).encode())
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": loaded.model.image_size, "width": loaded.model.image_size},
        "resample": 2,  # bilinear
        "image_mean": list(loaded.train.mean),
        "image_std": list(loaded.train.std),
    }
    write_atomic(out / "preprocessor_config.json", json.dumps(processor, indent=2).encode())
    return [out / WEIGHTS, out / "config.json", out / "preprocessor_config.json"]


def config_of(loaded: Loaded) -> dict[str, object]:
    model = loaded.model
    return {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "num_channels": 3,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": 4 * model.width,
        "decoder_hidden_size": model.decoder_width,
        "decoder_num_hidden_layers": model.decoder_depth,
        "decoder_num_attention_heads": model.decoder_heads,
        "decoder_intermediate_size": 4 * model.decoder_width,
        "mask_ratio": loaded.train.mask_ratio,
        "norm_pix_loss": loaded.train.norm_pix,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "qkv_bias": True,
    }


def settings_of(config: dict[str, int]) -> ModelSettings:
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


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """facebookresearch names -> Hugging Face 4.x names."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stack, inside = _block(name, STACKS)
        if "attn.qkv." in inside:
            kind = inside.rsplit(".", 1)[1]
            for third, part in zip(THIRDS, tensor.chunk(3), strict=True):
                result[f"{stack}{third}{kind}"] = part.clone()
        else:
            result[stack + _swap(inside, INSIDE if stack else OUTSIDE)] = tensor.contiguous()
    return result


def read(path: Path) -> tuple[dict[str, Tensor], ModelSettings]:
    """Tensors by facebookresearch name, and the architecture, from a Hugging Face folder. Raises CheckpointError."""
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}/config.json", f"unreadable: {error}", "give a folder with both files") from None
    stored, _ = read_tensors(path / WEIGHTS)
    back_stacks, back_inside, back_outside = ({v: k for k, v in m.items()} for m in (STACKS, INSIDE, OUTSIDE))
    result: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        stack, inside = _block(name, back_stacks)
        if inside.startswith(THIRDS[0]):
            parts = [stored.get(name.replace(THIRDS[0], third)) for third in THIRDS]
            if any(part is None for part in parts):
                raise CheckpointError(f"{path}: {name}", "its key or value is missing", "fetch the file again")
            result[f"{stack}attn.qkv.{inside.rsplit('.', 1)[1]}"] = torch.cat([p for p in parts if p is not None])
        elif not inside.startswith(THIRDS[1:]):
            result[stack + _swap(inside, back_inside if stack else back_outside)] = tensor
    return result, settings_of(config)


def _block(name: str, stacks: dict[str, str]) -> tuple[str, str]:
    """("blocks.3.norm1.bias") -> ("vit.encoder.layer.3.", "norm1.bias"); ("", name) outside the blocks."""
    for before, after in stacks.items():
        found = re.match(re.escape(before) + r"(\d+\.)", name)
        if found:
            return after + found[1], name[found.end() :]
    return "", name


def _swap(name: str, names: dict[str, str]) -> str:
    for before, after in names.items():
        if name.startswith(before):
            return after + name[len(before) :]
    raise CheckpointError(f"tensor {name}", "has no counterpart", "give a masked autoencoder's weights")


@torch.no_grad()
def difference(loaded: Loaded, out: Path) -> float:
    from transformers import ViTMAEForPreTraining

    theirs = ViTMAEForPreTraining.from_pretrained(out).eval()
    images, ours = probe_images(loaded), model_of(loaded)
    noise = torch.rand(len(images), ours.pos_embed.shape[1] - 1, generator=torch.Generator().manual_seed(1))
    loss, prediction, _ = ours(images, noise)
    answer = theirs(images, noise=noise)
    return max(float((answer.logits - prediction).abs().max()), float((answer.loss - loss).abs()))
