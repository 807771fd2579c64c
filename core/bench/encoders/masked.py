"""Masked autoencoders under test: checkpoints of this project and of others, and random weights of their shape."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from usfmae.core.bench.encoders.base import Encoder, Pooling
from usfmae.core.checkpoint import encoder_of, tensors_id
from usfmae.core.config import ModelSettings
from usfmae.core.errors import CheckpointError
from usfmae.core.mae.model import MaskedAutoencoder
from usfmae.core.mae.weights.init_weights import load_any
from usfmae.core.types import content_id


class MaskedEncoder(nn.Module):
    """The encoder of the masked autoencoder, nothing masked."""

    def __init__(self, model: ModelSettings, tensors: dict[str, Tensor] | None, pooling: Pooling) -> None:
        super().__init__()
        self.autoencoder, self.pooling = MaskedAutoencoder(model), pooling
        if tensors is not None:
            self.autoencoder.load_state_dict(tensors, strict=False)
        for name in [n for n, _ in self.autoencoder.named_children() if n.startswith("decoder_")]:
            delattr(self.autoencoder, name)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)."""
        tokens = self.autoencoder.features(images)  # (B, 1 + L, D)
        return tokens[:, 0] if self.pooling == "cls" else tokens[:, 1:].mean(dim=1)


def checkpoint(spec: str, pooling: Pooling) -> Encoder:
    loaded = load_any(Path(spec))
    encoder = encoder_of(loaded.tensors)
    module = MaskedEncoder(loaded.model, encoder, pooling)
    missing = {n for n in module.autoencoder.state_dict() if n != "mask_token" and not n.startswith("decoder_")}
    if missing - set(encoder):
        raise CheckpointError(f"checkpoint {spec}", f"lacks tensor {min(missing - set(encoder))}", "fetch it again")
    mean, std = loaded.train.mean, loaded.train.std
    id_ = content_id(tensors_id(encoder), pooling, str(mean), str(std))
    aspect = loaded.train.augment.aspect
    return Encoder(spec, id_, module.eval(), loaded.model.width, loaded.model.image_size, mean, std, aspect)


def random_weights(spec: str, rest: str, pooling: Pooling) -> Encoder:
    path, _, seed = rest.partition("@")
    loaded = load_any(Path(path))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed or 0))
        module = MaskedEncoder(loaded.model, None, pooling)
    id_ = content_id("random", tensors_id(module.state_dict()), pooling)
    model, train = loaded.model, loaded.train
    aspect = train.augment.aspect
    return Encoder(spec, id_, module.eval(), model.width, model.image_size, train.mean, train.std, aspect)
