"""Pixels to what the model sees: three channels, normalised, on its device."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from usfmae.core.config import TrainSettings
from usfmae.core.types import Pixels


def normalise(pixels: Pixels, settings: TrainSettings, device: torch.device) -> Tensor:
    """(B, S, S, C) uint8 -> (B, 3, S, S) float on the device; gray becomes three equal channels first."""
    images = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return normalised(images.permute(0, 3, 1, 2), settings)


def normalised(images: Tensor, settings: TrainSettings) -> Tensor:
    """(B, C, S, S) of gray levels 0 to 255 -> (B, 3, S, S) float."""
    images = images.expand(-1, 3, -1, -1).float()
    if images.stride(1) == 0:  # gray that is float already: the channels share their memory
        images = images.contiguous()
    device = images.device
    return images.div_(255).sub_(_channels(settings.mean, device)).div_(_channels(settings.std, device))


@lru_cache(maxsize=8)  # a copy to a GPU waits for it
def _channels(values: tuple[float, float, float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(3, 1, 1)
