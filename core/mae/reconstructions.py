"""Reconstruction panels: each row an image, what the encoder saw of it, and what the decoder made of that."""

from __future__ import annotations

import numpy as np
import torch

from usfmae.core.config import TrainSettings
from usfmae.core.corpus.augment import plain
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.mae.device import autocast, device_of
from usfmae.core.mae.model import MaskedAutoencoder
from usfmae.core.mae.optimizer_step import normalise
from usfmae.core.mae.train import fixed_noise
from usfmae.core.types import Pixels

GAP = 6  # pixels of white between pictures


@torch.no_grad()
def panel(model: MaskedAutoencoder, corpus: Corpus, positions: Positions, settings: TrainSettings) -> Pixels:
    """(rows, 3 pictures) as one RGB image: original, hidden patches gray, hidden patches filled by the model.

    With `norm_pix` the model predicts normalised patches; mean and variance are then taken from the original.
    """
    device = device_of(model)
    images = normalise(plain(corpus.fetch(positions).pixels, model.settings.image_size), settings, device)
    noise = torch.from_numpy(fixed_noise([corpus.ids[p] for p in positions], model)).to(device)
    with autocast(device, settings.precision):
        _, prediction, mask = model(images, noise)
    patches = model.patchify(images)  # (B, L, P)
    if settings.norm_pix:
        prediction = prediction * (patches.var(-1, keepdim=True) + 1e-6).sqrt() + patches.mean(-1, keepdim=True)
    hidden = mask[..., None].bool()
    filled = model.unpatchify(torch.where(hidden, prediction.float(), patches))
    masked = model.unpatchify(torch.where(hidden, torch.zeros_like(patches), patches))
    rows = [_row([_pixels(x[i], settings) for x in (images, masked, filled)]) for i in range(len(positions))]
    return np.vstack([part for row in rows for part in (row, np.full((GAP, row.shape[1], 3), 255, np.uint8))][:-1])


def _pixels(image: torch.Tensor, settings: TrainSettings) -> Pixels:
    """(3, S, S) normalised -> (S, S, 3) uint8."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (settings.mean, settings.std))
    return ((image.cpu() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _row(pictures: list[Pixels]) -> Pixels:
    gap = np.full((pictures[0].shape[0], GAP, 3), 255, np.uint8)
    return np.hstack([part for picture in pictures for part in (picture, gap)][:-1])
