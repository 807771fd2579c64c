"""Weights of other libraries under facebookresearch's names, with the architecture they state or show.

Read are: facebookresearch/mae and the official USF-MAE, timm, Hugging Face ViTMAE and ViT as transformers 4 and 5 name
them, each bare or below the prefixes of compiled, distributed, Lightning and averaged models. Heads show in no shape:
the encoder's follow the published sizes of ViT, the decoder's must be stated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from usfmae.core.config import ModelSettings
from usfmae.core.errors import CheckpointError
from usfmae.core.mae.weights.foreign_files import read_stored

# facebookresearch name -> Hugging Face 4.x name, outside and inside a block.
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
# Hugging Face 5.x -> 4.x inside a block.
FIVE = {
    "attention.q_proj.": THIRDS[0],
    "attention.k_proj.": THIRDS[1],
    "attention.v_proj.": THIRDS[2],
    "attention.o_proj.": "attention.output.dense.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}

OURS, HUGGING_FACE = "patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight"
COPIES = ("ema", "teacher", "target", "momentum")  # in the prefix of a second, averaged model
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # width -> heads, as every published ViT has them
ENCODER = ("cls_token", "pos_embed", "norm.weight", "norm.bias", "patch_embed.proj.bias")
NOT_OURS = ("head.", "fc_norm.", "head_drop.", "classifier.", "pooler.", "num_batches_tracked")


@dataclass(frozen=True)
class ForeignWeights:
    """Tensors by facebookresearch name, their architecture, and which parts of it nothing states."""

    tensors: dict[str, Tensor]
    model: ModelSettings
    unstated: frozenset[str] = frozenset()  # of "heads" and "decoder_heads": then they are the usual ones
    train: dict[str, Any] = field(default_factory=dict)  # what is stated of mask_ratio, norm_pix, mean and std


def read_foreign(path: Path) -> ForeignWeights:
    """Any of the formats, from a file or a folder. Raises CheckpointError that says what does not fit and why."""
    stored = read_stored(path)
    folder = path if path.is_dir() else path.parent
    config = _config(folder)
    tensors = named_as_ours(stored.tensors, str(path))
    try:
        stated = {**_stated_by_arguments(stored.arguments), **_stated_by_config(config)}
    except TypeError as error:  # a number where a list or names belong
        raise CheckpointError(f"{folder}/config.json", f"is of no known form: {error}", "fetch it again") from None
    model, unstated = architecture_of(tensors, stated, str(path))
    train = {k: v for k, v in stated.items() if k in ("mask_ratio", "norm_pix", "mean", "std")}
    return ForeignWeights(tensors, model, unstated, train)


def named_as_ours(stored: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The masked autoencoder among these tensors, without prefixes, under facebookresearch's names."""
    plain = {name.replace("_orig_mod.", ""): tensor for name, tensor in stored.items()}
    anchors = [n for n in plain if n.endswith((OURS, HUGGING_FACE))]
    if not anchors:
        raise CheckpointError(
            f"weights {origin}",
            f"hold no vision transformer: no tensor {OURS}; the first is {min(plain)}",
            "give a masked autoencoder's or a ViT's weights",
        )
    # An averaged second model beside the first is left aside.
    anchor = min(anchors, key=lambda n: (any(copy in n.lower() for copy in COPIES), len(n), n))
    if anchor.endswith(HUGGING_FACE):
        return _from_hugging_face(plain, anchor.removesuffix(HUGGING_FACE), origin)
    prefix = anchor.removesuffix(OURS)
    below = {n.removeprefix(prefix): t for n, t in plain.items() if n.startswith(prefix)}
    return _without_heads(below, origin)


def _without_heads(tensors: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The model's own tensors; a classifier's head is left out, any other stranger is named."""
    if "norm.weight" not in tensors and "fc_norm.weight" in tensors:
        raise CheckpointError(
            f"weights {origin}",
            "are a classifier's with average pooling: its `fc_norm` is no norm of an encoder",
            "give the weights before fine-tuning, or a classifier with the class token",
        )
    lacking = [name for name in ENCODER if name not in tensors]
    if lacking:
        raise CheckpointError(f"weights {origin}", f"lack tensor {lacking[0]}", "give a plain ViT with a class token")
    names = re.compile(
        r"(decoder_)?blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)|patch_embed\.proj\.(weight|bias)"
        r"|(decoder_)?norm\.(weight|bias)|cls_token|mask_token|(decoder_)?pos_embed|decoder_(embed|pred)\.(weight|bias)"
    )
    ours = {n: t for n, t in tensors.items() if names.fullmatch(n)}
    strangers = [n for n in tensors if n not in ours and not n.startswith(NOT_OURS)]
    inside = [n for n in strangers if n.startswith(("blocks.", "patch_embed.", "norm."))]
    if inside:
        raise CheckpointError(
            f"weights {origin}", f"have tensor {inside[0]}, which a plain ViT has not", "give a plain ViT's weights"
        )
    return ours


def _from_hugging_face(stored: Mapping[str, Tensor], prefix: str, origin: str) -> dict[str, Tensor]:
    """ViTMAE or ViT of transformers 4 and 5; `prefix` stands before `embeddings.` (`vit.`, or nothing)."""
    root = prefix.removesuffix("vit.")
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.startswith(prefix) and not name.startswith(f"{root}decoder."):
            tensors[_four(f"vit.{name.removeprefix(prefix)}")] = tensor
        elif name.startswith(f"{root}decoder."):
            tensors[_four(name.removeprefix(root))] = tensor
    back_stacks, back_inside, back_outside = ({v: k for k, v in m.items()} for m in (STACKS, INSIDE, OUTSIDE))
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stack, inside = renamed_block(name, back_stacks)
        if inside.startswith(THIRDS[0]):
            parts = [tensors.get(name.replace(THIRDS[0], third)) for third in THIRDS]
            if any(part is None for part in parts):
                raise CheckpointError(f"{origin}: {name}", "its key or value is missing", "fetch the file again")
            result[f"{stack}attn.qkv.{inside.rsplit('.', 1)[1]}"] = torch.cat([p for p in parts if p is not None])
        elif not inside.startswith((*THIRDS[1:], "vit.pooler.")):
            result[stack + renamed_prefix(inside, back_inside if stack else back_outside)] = tensor
    return _without_heads(result, origin)


def _four(name: str) -> str:
    """A name of transformers 5, in memory or as it writes it to disk, as 4 has it."""
    name = re.sub(r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers.", name)
    name = re.sub(r"^vit\.(?:encoder\.)?layers?\.", "vit.encoder.layer.", name)
    block = re.match(r"(vit\.encoder\.layer|decoder\.decoder_layers)\.\d+\.", name)
    if block:
        for five, four in FIVE.items():
            if name[block.end() :].startswith(five):
                return block[0] + four + name[block.end() + len(five) :]
    return name


def renamed_block(name: str, stacks: dict[str, str]) -> tuple[str, str]:
    """("blocks.3.norm1.bias") -> ("vit.encoder.layer.3.", "norm1.bias"); ("", name) outside the blocks."""
    for before, after in stacks.items():
        block = re.match(re.escape(before) + r"(\d+\.)", name)
        if block:
            return after + block[1], name[block.end() :]
    return "", name


def renamed_prefix(name: str, names: dict[str, str]) -> str:
    for before, after in names.items():
        if name.startswith(before):
            return after + name[len(before) :]
    raise CheckpointError(f"tensor {name}", "has no counterpart", "give a masked autoencoder's weights")


def architecture_of(
    tensors: Mapping[str, Tensor], stated: Mapping[str, Any], origin: str
) -> tuple[ModelSettings, frozenset[str]]:
    """The architecture: what is stated, then what shapes show; heads that neither says are the usual ones, and named."""
    patch, width = tensors[OURS].shape[-1], len(tensors["cls_token"].flatten())
    for stack, wide in (("blocks.", width), ("decoder_blocks.", len(tensors.get("decoder_embed.weight", ())))):
        inner = len(tensors.get(f"{stack}0.mlp.fc1.bias", ())) or 4 * wide
        if inner != 4 * wide:
            raise CheckpointError(
                f"weights {origin}", f"{stack}0.mlp is {inner} wide, not {4 * wide}", "give a plain ViT"
            )
    grid = math.isqrt(tensors["pos_embed"].shape[1] - 1)
    if grid * grid + 1 != tensors["pos_embed"].shape[1]:
        raise CheckpointError(f"weights {origin}", "have positions for no square image", "give a square model")
    shown: dict[str, Any] = {
        "image_size": grid * patch,
        "patch_size": patch,
        "width": width,
        "depth": _depth(tensors, "blocks."),
        "heads": HEADS.get(width, max(1, width // 64)),
    }
    if "decoder_embed.weight" in tensors:
        narrow = len(tensors["decoder_embed.weight"])
        heads = 16 if narrow % 16 == 0 else 1
        shown |= {"decoder_width": narrow, "decoder_depth": _depth(tensors, "decoder_blocks."), "decoder_heads": heads}
    unstated = {name for name in ("heads", "decoder_heads") if name in shown and name not in stated}
    unstated -= {"heads"} if width in HEADS else set()
    names = ModelSettings.model_fields
    try:
        model = ModelSettings.model_validate({**shown, **{k: v for k, v in stated.items() if k in names}})
    except ValueError as error:
        problem = "; ".join(str(error).splitlines()[1:3])
        raise CheckpointError(
            f"weights {origin}", f"state an impossible model: {problem}", "fetch them again"
        ) from None
    return model, frozenset(unstated)


def _depth(tensors: Mapping[str, Tensor], stack: str) -> int:
    return len({name.split(".")[1] for name in tensors if name.startswith(stack)})


def _config(folder: Path) -> dict[str, Any]:
    """config.json of a folder; empty where there is none."""
    try:
        values: dict[str, Any] = json.loads((folder / "config.json").read_text())
        return values if isinstance(values, dict) else {}
    except OSError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{folder}/config.json", f"is unreadable: {error}", "fetch the folder again") from None


TIMM = {
    "image_size": "img_size",
    "patch_size": "patch_size",
    "width": "embed_dim",
    "depth": "depth",
    "heads": "num_heads",
}
TRANSFORMERS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "decoder_width": "decoder_hidden_size",
    "decoder_depth": "decoder_num_hidden_layers",
    "decoder_heads": "decoder_num_attention_heads",
    "mask_ratio": "mask_ratio",
    "norm_pix": "norm_pix_loss",
}


def _stated_by_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json of timm or Hugging Face says of the architecture and the pixels."""
    if config.get("model_type") in ("vit_mae", "vit"):
        return {ours: config[theirs] for ours, theirs in TRANSFORMERS.items() if theirs in config}
    arguments, pixels = config.get("model_args") or {}, config.get("pretrained_cfg") or {}
    stated = {ours: arguments[theirs] for ours, theirs in TIMM.items() if theirs in arguments}
    return stated | {name: tuple(pixels[name]) for name in ("mean", "std") if name in pixels}


def _stated_by_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What facebookresearch's training arguments say: its model names stand for their decoder's 16 heads."""
    stated = {"mask_ratio": "mask_ratio", "norm_pix": "norm_pix_loss"}
    settings = {ours: arguments[theirs] for ours, theirs in stated.items() if theirs in arguments}
    if str(arguments.get("model", "")).startswith("mae_vit_"):
        settings["decoder_heads"] = 16
    return settings
