"""What a model under test is: a module and what is needed to feed and to name it. B images, S side, D features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pooling = Literal["mean", "cls"]
THUMBNAIL = 32


@dataclass(frozen=True)
class Encoder:
    """A module (B, 3, S, S) normalised -> (B, D), and what is needed to feed and to name it."""

    name: str
    id: str  # hash of weights and pooling: the key of cached features
    module: nn.Module
    width: int  # D
    size: int  # S
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    aspect: Literal["squash", "keep"] = "keep"  # how the images it was trained on were made square

    def prepare(self, pixels: Tensor) -> Tensor:
        """(B, S', S', C) uint8 -> (B, 3, S, S) float, normalised."""
        images = pixels.permute(0, 3, 1, 2).float().div_(255)
        if images.shape[-1] != self.size:
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (images.expand(-1, 3, -1, -1) - mean) / std

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, S', S', C) uint8 -> (B, D)."""
        features: Tensor = self.module(self.prepare(pixels))
        return features


class Thumbnail(nn.Module):
    """Raw pixels as features."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 32 * 32)."""
        small: Tensor = F.interpolate(images.mean(1, keepdim=True), (THUMBNAIL, THUMBNAIL), mode="area").flatten(1)
        return small


def pixels() -> Encoder:
    """A 32 x 32 gray thumbnail: what any encoder must beat."""
    return Encoder("pixels", f"pixels-{THUMBNAIL}", Thumbnail(), THUMBNAIL**2, 224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
