"""The tiny preset learns real ultrasound: 300 steps, fixed seed, held-out groups; and what must not work does not.

In units of the variance of the held-out pixels the best constant has error 1 and the training images' mean (position
alone) about 0.68. About a minute on two cores, so it runs with the end-to-end tests.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from usfmae.core.corpus.augment import plain
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.corpus.shard import square, write_shard
from usfmae.core.mae.device import autocast, device_of
from usfmae.core.mae.device_batches import normalise
from usfmae.core.mae.evaluation import fixed_noise, target_variance
from usfmae.core.mae.model import MaskedAutoencoder, fresh
from usfmae.core.mae.presets import preset
from usfmae.core.mae.train import TrainPlan, train
from usfmae.core.types import CleanImage, Trail

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

DATASETS = ("stu_hospital", "bus_bra", "pocus_frames")
MODEL, TRAIN = preset("tiny")


@pytest.fixture(scope="module")
def corpus(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root, items = tmp_path_factory.mktemp("corpus"), []
    with (shared_data / "index.csv").open() as file:
        for row in csv.DictReader(file):
            if row["dataset"] in DATASETS and row["kind"] in ("png", "jpg"):
                pixels = np.asarray(Image.open(shared_data / row["path"]).convert("RGB"))
                image = CleanImage(pixels, np.zeros(pixels.shape[:2], bool), Trail(row["sha256"]))
                items.append(square(image, 224, row["group"], row["dataset"]))
    write_shard(root, "real", items)
    return Corpus([root])


@pytest.fixture(scope="module")
def held(corpus: Corpus) -> Positions:
    return corpus.split(TRAIN.held_out, TRAIN.seed)[1]


def trained(corpus: Corpus, lr: float) -> MaskedAutoencoder:
    model = fresh(MODEL, TRAIN.mask_ratio, TRAIN.norm_pix, TRAIN.seed)
    settings = TRAIN.model_copy(update={"lr": lr})
    train(model, corpus, settings, TrainPlan(corpus.split(TRAIN.held_out, TRAIN.seed)[0], 300 if lr else 2))
    return model


@pytest.fixture(scope="module")
def learned(corpus: Corpus) -> MaskedAutoencoder:
    return trained(corpus, TRAIN.lr)


@torch.no_grad()
def error(
    model: MaskedAutoencoder, corpus: Corpus, held: Positions, spoil: Callable[[Tensor, Tensor], Tensor] | None = None
) -> float:
    """Masked error over the variance; `spoil(patches, hidden)` changes what the model sees, never what it must say."""
    images = normalise(plain(corpus.fetch(held).pixels, MODEL.image_size), TRAIN, device_of(model))
    noise = torch.from_numpy(fixed_noise([corpus.ids[p] for p in held], model))
    with autocast(device_of(model), TRAIN.precision):
        patches = model.patchify(images)
        _, prediction, mask = model(images, noise)
        if spoil is not None:
            prediction = model(model.unpatchify(spoil(patches, mask[..., None])), noise)[1]
    wrong = (prediction.float() - patches).square().mean(-1)
    masked = float((wrong * mask).sum() / mask.sum())
    return masked / target_variance(model, corpus, held, TRAIN)


def test_the_masked_error_falls_below_half_of_the_variance(
    learned: MaskedAutoencoder, corpus: Corpus, held: Positions
) -> None:
    assert error(learned, corpus, held) < 0.5


def test_a_learning_rate_of_zero_learns_nothing(corpus: Corpus, held: Positions) -> None:
    assert error(trained(corpus, 0.0), corpus, held) > 0.9


def test_it_needs_to_know_where_patches_are(learned: MaskedAutoencoder, corpus: Corpus, held: Positions) -> None:
    kept = learned.decoder_pos_embed.clone()
    order = torch.randperm(kept.shape[1] - 1, generator=torch.Generator().manual_seed(0)) + 1
    learned.decoder_pos_embed.data[:, 1:] = kept[:, order]
    try:
        assert error(learned, corpus, held) > 0.5
    finally:
        learned.decoder_pos_embed.data.copy_(kept)


def test_it_needs_the_visible_patches(learned: MaskedAutoencoder, corpus: Corpus, held: Positions) -> None:
    assert error(learned, corpus, held, lambda patches, hidden: patches * hidden) > 0.5
