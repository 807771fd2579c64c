"""timm: `timm.create_model("local-dir:OUT", pretrained=True)`, or `create_model(NAME, checkpoint_path=...)`.

The encoder's tensors have the same names in timm. Pooling is the class token; a recipe with average pooling starts
its own `fc_norm`, as facebookresearch does.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from usfmae.core.checkpoint import Loaded, encoder_of, write_tensors
from usfmae.core.config import ModelSettings
from usfmae.core.export.target import ExportOptions, model_of, probe_images
from usfmae.core.files import write_atomic
from usfmae.core.mae.weights.foreign_files import SAFETENSORS as WEIGHTS

TOLERANCE = 1e-4
USE = 'encoder = timm.create_model("local-dir:.", pretrained=True)'
NAMES = {192: "tiny", 384: "small", 768: "base", 1024: "large"}  # encoder width -> timm's word for it


def architecture(model: ModelSettings) -> tuple[str, dict[str, Any]]:
    """timm's model name, and the arguments that turn it into this encoder."""
    arguments = {
        "img_size": model.image_size,
        "patch_size": model.patch_size,
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "num_classes": 0,
        "global_pool": "token",
    }
    return f"vit_{NAMES.get(model.width, 'base')}_patch16_224", arguments


def write(loaded: Loaded, out: Path, options: ExportOptions = ExportOptions()) -> list[Path]:
    name, arguments = architecture(loaded.model)
    size, train = loaded.model.image_size, loaded.train
    config = {
        "architecture": name,
        "num_classes": 0,
        "num_features": loaded.model.width,
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "usfmae",
            "input_size": [3, size, size],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": list(train.mean),
            "std": list(train.std),
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    tensors = {name: tensor.contiguous() for name, tensor in encoder_of(loaded.tensors).items()}
    write_tensors(out / WEIGHTS, tensors, {"format": "pt"})
    write_atomic(out / "config.json", json.dumps(config, indent=2).encode())
    return [out / WEIGHTS, out / "config.json"]


@torch.no_grad()
def difference(loaded: Loaded, out: Path) -> float:
    import timm

    logging.getLogger("timm").setLevel(logging.WARNING)
    theirs: Any = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    images = probe_images(loaded)
    return float((theirs.forward_features(images) - model_of(loaded).features(images)).abs().max())
