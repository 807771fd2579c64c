"""Reconstructions as a picture: each row is one held-out image, what the model saw, and what it made of it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from usfmae.core.config import TrainSettings
from usfmae.core.corpus.augment import plain
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.files import write_atomic
from usfmae.core.flow import Pixels
from usfmae.core.model import MaskedAutoencoder
from usfmae.core.train import autocast, device_of, fixed_noise, normalise


@torch.no_grad()
def panel(model: MaskedAutoencoder, corpus: Corpus, positions: Positions, settings: TrainSettings) -> Pixels:
    """(rows * S, 4 * S, 3) uint8: original, visible patches, prediction, prediction with the visible patches put in.

    Targets normalised by patch (norm_pix) are brought back with each patch's own mean and deviation.
    """
    device, was_training = device_of(model), model.training
    images = normalise(plain(corpus.fetch(positions).pixels, model.settings.image_size), settings, device)
    noise = torch.from_numpy(fixed_noise([corpus.ids[p] for p in positions], model)).to(device)
    model.eval()
    with autocast(device, settings):
        _, prediction, mask = model(images, noise)
    model.train(was_training)
    patches = model.patchify(images)
    prediction = prediction.float()
    if settings.norm_pix:
        prediction = prediction * (patches.var(-1, keepdim=True) + 1e-6).sqrt() + patches.mean(-1, keepdim=True)
    hidden = mask[..., None]
    gray = torch.zeros_like(patches)
    columns = [
        patches,
        patches * (1 - hidden) + gray * hidden,
        prediction,
        patches * (1 - hidden) + prediction * hidden,
    ]
    shown = torch.stack([model.unpatchify(c) for c in columns], dim=1)  # (B, 4, 3, S, S)
    return to_pixels(shown, settings)


def to_pixels(shown: Tensor, settings: TrainSettings) -> Pixels:
    """(B, K, 3, S, S) normalised -> one picture (B * S, K * S, 3) uint8."""
    mean, std = (torch.tensor(v, device=shown.device).view(3, 1, 1) for v in (settings.mean, settings.std))
    values = ((shown * std + mean).clamp(0, 1) * 255).round().byte()
    rows, columns, _, side, _ = values.shape
    return values.permute(0, 3, 1, 4, 2).reshape(rows * side, columns * side, 3).cpu().numpy().astype(np.uint8)


def write_panel(path: Path, pixels: Pixels) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())
