"""What a model predicts of images it is not trained on: its masked loss, what a constant would have, and pictures of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from usfmae.core.config import TrainSettings
from usfmae.core.corpus.augment import plain
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.corpus.sampling import generator
from usfmae.core.mae.device import autocast, device_of, micro_batch
from usfmae.core.mae.device_batches import normalise
from usfmae.core.mae.model import MaskedAutoencoder
from usfmae.core.mae.optimizer_step import Stop, never
from usfmae.core.types import Pixels, content_id


class Stopped(Exception):  # noqa: N818
    """A measurement was ended before its end, because the training is to stop."""


@torch.no_grad()
def evaluate(
    model: MaskedAutoencoder, corpus: Corpus, positions: Positions, settings: TrainSettings, stop: Stop = never
) -> float:
    """Mean masked loss over `positions`, without augmentation; an image's mask depends on its id alone.

    Raises Stopped where `stop` turns true before the end.
    """
    device, was_training = device_of(model), model.training
    total = 0.0
    model.eval()
    try:
        for rows in chunks(positions, micro_batch(settings, device)):
            if stop():
                raise Stopped
            pixels = plain(corpus.fetch(rows).pixels, model.settings.image_size)
            noise = torch.from_numpy(fixed_noise([corpus.ids[p] for p in rows], model)).to(device)
            with autocast(device, settings.precision):
                loss = model(normalise(pixels, settings, device), noise, full=False)[0]
            total += float(loss) * len(rows)
    finally:
        model.train(was_training)
    return total / max(1, len(positions))


@torch.no_grad()
def target_variance(model: MaskedAutoencoder, corpus: Corpus, positions: Positions, settings: TrainSettings) -> float:
    """Variance of what is to be predicted about each channel's mean: the masked loss of the best constant."""
    count, mean, square = 0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    device = device_of(model)
    for rows in chunks(positions, micro_batch(settings, device)):
        images = normalise(plain(corpus.fetch(rows).pixels, model.settings.image_size), settings, device)
        target = model.target(model.patchify(images)).double().unflatten(-1, (-1, 3)).cpu()  # (B, L, P / 3, 3)
        mean, square = mean + target.mean((1, 2)).sum(0), square + target.square().mean((1, 2)).sum(0)
        count += len(rows)
    return float((square / count - (mean / count) ** 2).mean())


def fixed_noise(ids: list[str], model: MaskedAutoencoder) -> np.ndarray:
    """Mask noise (B, L) that depends on the ids alone."""
    patches = model.pos_embed.shape[1] - 1
    return np.stack([generator(int(content_id(id_)[:15], 16)).random(patches, dtype=np.float32) for id_ in ids])


def chunks(positions: Positions, size: int) -> Iterator[Positions]:
    return (positions[start : start + size] for start in range(0, len(positions), size))


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
