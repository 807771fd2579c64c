"""Hugging Face with decoder: `transformers.ViTMAEForPreTraining.from_pretrained(OUT)`, under the 4.x names.

transformers 5.x converts them. The model masks and shuffles patches, also in use: for features export `hf`.

There q, k and v are three matrices; here one `qkv` holds them in that order. Two defaults there differ from MAE's:
`layer_norm_eps` 1e-12 and 16 decoder heads; both stand in the config we write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from usfmae.core.checkpoint import Loaded, decoder_of, write_tensors
from usfmae.core.config import ModelSettings
from usfmae.core.errors import CheckpointError
from usfmae.core.export.target import ExportOptions, model_of, probe_images
from usfmae.core.files import write_atomic
from usfmae.core.mae.weights.foreign_files import SAFETENSORS as WEIGHTS
from usfmae.core.mae.weights.foreign_weights import INSIDE, OUTSIDE, STACKS, THIRDS, renamed_block, renamed_prefix

TOLERANCE = 1e-4
USE = 'model = transformers.ViTMAEForPreTraining.from_pretrained(".")  # masks patches, also in use'


def write(loaded: Loaded, out: Path, options: ExportOptions = ExportOptions()) -> list[Path]:
    """Weights and config. CheckpointError for a checkpoint of an encoder alone."""
    if not decoder_of(loaded.tensors):
        raise CheckpointError("checkpoint", "holds no decoder, which ViTMAEForPreTraining needs", "export it to hf")
    write_tensors(out / WEIGHTS, renamed(loaded.tensors), {"format": "pt"})
    write_atomic(out / "config.json", json.dumps(config_of(loaded), indent=2).encode())
    return [out / WEIGHTS, out / "config.json", write_processor(loaded, out)]


def write_processor(loaded: Loaded, out: Path) -> Path:
    """How transformers makes pixels of a picture: squashed to a square, scaled to 0..1, normalised."""
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": loaded.model.image_size, "width": loaded.model.image_size},
        "resample": 2,  # bilinear
        "image_mean": list(loaded.train.mean),
        "image_std": list(loaded.train.std),
    }
    write_atomic(out / "preprocessor_config.json", json.dumps(processor, indent=2).encode())
    return out / "preprocessor_config.json"


def config_of(loaded: Loaded) -> dict[str, object]:
    model = loaded.model
    return {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        **encoder_config(model),
        "decoder_hidden_size": model.decoder_width,
        "decoder_num_hidden_layers": model.decoder_depth,
        "decoder_num_attention_heads": model.decoder_heads,
        "decoder_intermediate_size": 4 * model.decoder_width,
        "mask_ratio": loaded.train.mask_ratio,
        "norm_pix_loss": loaded.train.norm_pix,
    }


def encoder_config(model: ModelSettings) -> dict[str, object]:
    """What transformers says of the encoder, with and without the decoder."""
    return {
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "num_channels": 3,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": 4 * model.width,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "qkv_bias": True,
    }


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """facebookresearch names -> Hugging Face 4.x names."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stack, inside = renamed_block(name, STACKS)
        if "attn.qkv." in inside:
            kind = inside.rsplit(".", 1)[1]
            for third, part in zip(THIRDS, tensor.chunk(3), strict=True):
                result[f"{stack}{third}{kind}"] = part.clone()
        else:
            result[stack + renamed_prefix(inside, INSIDE if stack else OUTSIDE)] = tensor.contiguous()
    return result


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """transformers shows a bar for every file it reads, also one that takes no time."""
    from transformers.utils import logging

    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()


@torch.no_grad()
def difference(loaded: Loaded, out: Path) -> float:
    from transformers import ViTMAEForPreTraining

    with no_progress_bar():
        theirs = ViTMAEForPreTraining.from_pretrained(out).eval()
    images, ours = probe_images(loaded), model_of(loaded)
    noise = torch.rand(len(images), ours.pos_embed.shape[1] - 1, generator=torch.Generator().manual_seed(1))
    loss, prediction, _ = ours(images, noise)
    answer = theirs(images, noise=noise)
    return max(float((answer.logits - prediction).abs().max()), float((answer.loss - loss).abs()))
