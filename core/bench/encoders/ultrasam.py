"""UltraSam's image encoder (a SAM ViT-B in mmpretrain's names) as timm's `samvit_base_patch16`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from usfmae.core.bench.encoders.base import Encoder
from usfmae.core.checkpoint import tensors_id
from usfmae.core.errors import CheckpointError
from usfmae.core.types import content_id

SIZE = 1024
# SAM's own pixel statistics.
MEAN, STD = (123.675 / 255, 116.28 / 255, 103.53 / 255), (58.395 / 255, 57.12 / 255, 57.375 / 255)
# mmpretrain's ViTSAM -> timm's VisionTransformerSAM.
NAMES = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.(\d+)\.ln1\.", r"blocks.\1.norm1."),
    (r"^layers\.(\d+)\.ln2\.", r"blocks.\1.norm2."),
    (r"^layers\.(\d+)\.attn\.", r"blocks.\1.attn."),
    (r"^layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"^layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"^channel_reduction\.", "neck."),
)


def ultrasam(spec: str, path: Path) -> Encoder:
    """UltraSam from its published `UltraSam.pth`. Raises CheckpointError where a tensor is missing or misshapen."""
    import timm

    model = timm.create_model("samvit_base_patch16", pretrained=False)
    tensors = renamed(_stored(path))
    own = model.state_dict()
    wrong = [n for n in own if not n.startswith("head.") and (n not in tensors or tensors[n].shape != own[n].shape)]
    if wrong:
        raise CheckpointError(
            f"weights {path}", f"have no tensor {wrong[0]} of SAM ViT-B's shape", "fetch UltraSam.pth again"
        )
    model.load_state_dict({n: tensors[n] for n in own if n in tensors}, strict=False)
    module = _Pooled(model).eval()
    return Encoder(spec, content_id(tensors_id(model.state_dict())), module, 256, SIZE, MEAN, STD)


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """mmpretrain's names, with or without the prefix `backbone.`, as timm's."""
    renamed_tensors = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("backbone.")
        for old, new in NAMES:
            name = re.sub(old, new, name)
        renamed_tensors[name] = tensor
    return renamed_tensors


def _stored(path: Path) -> dict[str, Tensor]:
    try:
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        first = (str(error).splitlines() or [""])[0][:160]
        raise CheckpointError(f"weights {path}", f"cannot be read: {first}", "fetch UltraSam.pth again") from None
    tensors = stored.get("state_dict", stored) if isinstance(stored, dict) else {}
    return {n: t for n, t in tensors.items() if isinstance(t, Tensor)}


class _Pooled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 1024, 1024) -> (B, 256): the neck's map, averaged."""
        features: Tensor = self.model.forward_features(images)  # type: ignore[operator]
        return features.mean(dim=(2, 3))
