"""Load an exported encoder with timm itself and compare its features with ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def timm_difference(checkpoint: Path, export: Path) -> dict[str, float]:
    """`timm_max_abs_diff` between timm's and our token features (B, 1 + L, D) on fixed noise images."""
    import timm
    import torch
    from safetensors.torch import load_file

    from usfmae.core.checkpoint import load
    from usfmae.core.model import MaskedAutoencoder, load_tensors

    loaded = load(checkpoint)
    ours = MaskedAutoencoder(loaded.model)
    load_tensors(ours, {**ours.state_dict(), **loaded.tensors})
    config = json.loads((export / "config.json").read_text())
    theirs: Any = timm.create_model(config["architecture"], num_classes=0, **config.get("model_args", {}))
    theirs.load_state_dict(load_file(export / "model.safetensors"))
    size = loaded.model.image_size
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        difference = (theirs.eval().forward_features(images) - ours.eval().features(images)).abs().max()
    return {"timm_max_abs_diff": float(difference)}
