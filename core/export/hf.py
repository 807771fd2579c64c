"""Hugging Face for use: `transformers.AutoModel.from_pretrained(OUT)` is a plain ViT that sees the whole picture.

`last_hidden_state` (B, 1 + L, D) are the encoder's tokens, the class token first; `pooler_output` is that class token.
Names are those of transformers 4.x, which 5.x converts.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from usfmae.core.checkpoint import Loaded, encoder_of, write_tensors
from usfmae.core.export.hf_mae import encoder_config, no_progress_bar, renamed, write_processor
from usfmae.core.export.target import ExportOptions, model_of, probe_images
from usfmae.core.files import write_atomic
from usfmae.core.mae.weights.foreign_files import SAFETENSORS as WEIGHTS

TOLERANCE = 1e-4
USE = 'encoder = transformers.AutoModel.from_pretrained(".")  # last_hidden_state: class token, then patches'


def write(loaded: Loaded, out: Path, options: ExportOptions = ExportOptions()) -> list[Path]:
    """Weights, config and preprocessor; the encoder alone."""
    width = loaded.model.width
    tensors = {n.removeprefix("vit."): t for n, t in renamed(encoder_of(loaded.tensors)).items()}
    # transformers builds a pooler in any case: this one hands the class token through.
    tensors |= {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}
    write_tensors(out / WEIGHTS, tensors, {"format": "pt"})
    write_atomic(out / "config.json", json.dumps(config_of(loaded), indent=2).encode())
    return [out / WEIGHTS, out / "config.json", write_processor(loaded, out)]


def config_of(loaded: Loaded) -> dict[str, object]:
    return {"architectures": ["ViTModel"], "model_type": "vit", **encoder_config(loaded.model), "pooler_act": "linear"}


@torch.no_grad()
def difference(loaded: Loaded, out: Path) -> float:
    from transformers import AutoModel

    with no_progress_bar():
        theirs = AutoModel.from_pretrained(out).eval()
    images = probe_images(loaded)
    ours, answer = model_of(loaded).features(images), theirs(images)
    tokens = float((answer.last_hidden_state - ours).abs().max())
    return max(tokens, float((answer.pooler_output - ours[:, 0]).abs().max()))
