"""A decoder that follows an encoder: trained on the frozen encoder, the same steps from the same start for every one.

A masked loss belongs to an encoder *and* a decoder. Read with a decoder that was trained beside another encoder, it
rises as soon as the encoder moves, also where the features became better. So encoders are compared with a decoder
that was refitted alike for each: same first weights, same images, same steps, same masks.

`refitted` trains as everything trains, with views and masks of their own for each step: for experiments. A server that
looks after every round does with less: an image goes through the frozen encoder once (`encoded`), and both the decoder
that follows it (`follow`) and every loss that is read (`loss_of`) start from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from usfmae.core.checkpoint import DECODER, decoder_of, encoder_of
from usfmae.core.config import ModelSettings, TrainRecipe, TrainSettings
from usfmae.core.corpus.augment import plain
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.corpus.sampling import generator
from usfmae.core.mae.device import autocast, device_of, micro_batch
from usfmae.core.mae.device_batches import normalise
from usfmae.core.mae.evaluation import chunks, fixed_noise
from usfmae.core.mae.lr_schedule import learning_rate
from usfmae.core.mae.model import MaskedAutoencoder, fresh, load_tensors, take
from usfmae.core.mae.train import TrainPlan, train

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Refit:
    """How a decoder is refitted; the same for every encoder that is compared."""

    model: ModelSettings
    train: TrainSettings  # mask ratio and target of the loss that is read afterwards
    corpus: Corpus
    positions: Positions  # images it is fitted on; those that are measured should be others
    steps: int
    decoder: Tensors | None = None  # first weights; None: random ones that depend on `train.seed` alone


def refitted(encoder: Tensors, refit: Refit) -> MaskedAutoencoder:
    """The encoder, untouched, with a decoder that was trained on it. Raises CheckpointError where shapes differ."""
    settings = refit.train
    model = fresh(refit.model, settings.mask_ratio, settings.norm_pix, settings.seed)
    decoder = decoder_of(model.state_dict()) if refit.decoder is None else refit.decoder
    load_tensors(model, {**encoder_of(dict(encoder)), **decoder}, "encoder to be measured")
    learns = {name: p.requires_grad for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad = learns[name] and name.startswith(DECODER)
    train(model, refit.corpus, settings, TrainPlan(refit.positions, refit.steps))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = learns[name]
    return model.eval()


MOST_REPEATS = 3  # times that a decoder is trained on one view of an image; not tuned


@dataclass(frozen=True)
class Encoded:
    """N images as a frozen encoder sees them: each once, whole but for its hidden patches, which depend on its id."""

    latent: Tensor  # (N, 1 + V, D) of the visible patches
    order: Tensor  # (N, L) patches, visible ones first
    target: Tensor  # (N, M, P) what is to be predicted of the hidden ones

    def __len__(self) -> int:
        return len(self.order)


@torch.no_grad()
def encoded(
    model: MaskedAutoencoder, corpus: Corpus, positions: Positions, settings: TrainSettings, views: int = 1
) -> Encoded:
    """Images through the encoder of `model`, with the masks that `evaluate` gives them.

    Further `views` of an image have masks of their own, and every other one is flipped.
    """
    device, parts = device_of(model), []
    for view, rows in ((v, rows) for v in range(views) for rows in chunks(positions, micro_batch(settings, device))):
        pixels = plain(corpus.fetch(rows).pixels, model.settings.image_size)
        ids = [corpus.ids[p] + (f" view {view}" if view else "") for p in rows]
        noise = torch.from_numpy(fixed_noise(ids, model)).to(device)
        images = normalise(pixels, settings, device)
        patches = model.patchify(images.flip(-1) if view % 2 else images)
        order = noise.argsort(dim=1)
        visible = int(order.shape[1] * (1 - model.mask_ratio))
        with autocast(device, settings.precision):
            latent = model._encode(patches, order[:, :visible])
        parts.append((latent.float(), order, model.target(take(patches, order[:, visible:])).float()))
    return Encoded(*(torch.cat(part) for part in zip(*parts, strict=True)))


def views_for(images: int, settings: TrainSettings, steps: int) -> int:
    """Views of each image, so that a decoder that follows learns none of them by heart."""
    return max(1, math.ceil(steps * settings.batch_size / max(1, images) / MOST_REPEATS))


def follow(model: MaskedAutoencoder, images: Encoded, settings: TrainSettings, steps: int) -> None:
    """Train the decoder of `model`, in place, on images that its encoder has seen: AdamW, `settings` place the rate.

    The images are drawn in the same order for every encoder. The encoder is not touched.
    """
    device = device_of(model)
    decoder = [p for n, p in model.named_parameters() if n.startswith(DECODER) and p.requires_grad]
    optimizer = torch.optim.AdamW(decoder, lr=0.0, betas=settings.betas, weight_decay=settings.weight_decay)
    recipe = TrainRecipe.of(settings)
    model.train()
    for step in range(steps):
        rows = generator(settings.seed, step).choice(len(images), min(settings.batch_size, len(images)), replace=False)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step + 1, steps + 1, recipe)
        with autocast(device, settings.precision):
            loss = _loss(model, images, torch.from_numpy(rows.astype(np.int64)).to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder, settings.clip)
        optimizer.step()
    model.eval()


@torch.no_grad()
def loss_of(model: MaskedAutoencoder, images: Encoded, settings: TrainSettings) -> float:
    """Mean masked loss with the decoder of `model`: what `evaluate` gives for these images."""
    device, total = device_of(model), 0.0
    model.eval()
    for rows in chunks(np.arange(len(images)), micro_batch(settings, device)):
        with autocast(device, settings.precision):
            total += float(_loss(model, images, torch.from_numpy(rows).to(device))) * len(rows)
    return total / max(1, len(images))


def _loss(model: MaskedAutoencoder, images: Encoded, rows: Tensor) -> Tensor:
    hidden = model._hidden_states(images.latent[rows], images.order[rows], full=False)  # (B, M, E)
    return F.mse_loss(model.decoder_pred(hidden).float(), images.target[rows])
