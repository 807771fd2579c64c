"""A refitted decoder tells an encoder that moved from one that forgot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from usfmae.core.checkpoint import decoder_of, encoder_of
from usfmae.core.config import AugmentSettings, ModelSettings, TrainSettings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import write_shard
from usfmae.core.mae.evaluation import evaluate
from usfmae.core.mae.model import fresh, load_tensors
from usfmae.core.mae.refit import Refit, encoded, follow, loss_of, refitted, views_for
from usfmae.core.mae.train import TrainPlan, train
from usfmae.server.simulate import tissue

MODEL = ModelSettings(
    image_size=32, patch_size=8, width=32, depth=1, heads=2, decoder_width=32, decoder_depth=1, decoder_heads=2
)
SETTINGS = TrainSettings(
    precision="fp32",
    lr=3e-3,
    batch_size=16,
    mask_ratio=0.5,
    augment=AugmentSettings(rotation=0, zoom_min=1, zoom_max=1),
)
FIT, MEASURED = np.arange(0, 64), np.arange(64, 96)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root: Path = tmp_path_factory.mktemp("tissue")
    write_shard(root, "all", list(tissue(3, 96, 32)))
    return Corpus([root])


@pytest.mark.parametrize("is_encoded_once", [False, True])
def test_a_turned_encoder_looks_forgetful_to_the_old_decoder_and_as_good_as_before_to_one_that_follows(
    corpus: Corpus, is_encoded_once: bool
) -> None:
    model = fresh(MODEL, SETTINGS.mask_ratio)
    train(model, corpus, SETTINGS, TrainPlan(FIT, 150))
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # The same features with their signs turned: nothing is forgotten.
    turned = {n: -t if n in ("norm.weight", "norm.bias") else t for n, t in encoder_of(tensors).items()}
    refit = Refit(MODEL, SETTINGS, corpus, FIT, 100, decoder_of(tensors))

    def old_decoder(encoder: dict[str, torch.Tensor]) -> float:
        load_tensors(model, {**encoder, **decoder_of(tensors)})
        return evaluate(model, corpus, MEASURED, SETTINGS)

    def follows(encoder: dict[str, torch.Tensor]) -> float:
        if is_encoded_once:
            load_tensors(model, {**encoder, **decoder_of(tensors)})
            views = views_for(len(FIT), SETTINGS, 100)
            follow(model, encoded(model, corpus, FIT, SETTINGS, views), SETTINGS, 100)
            return loss_of(model, encoded(model, corpus, MEASURED, SETTINGS), SETTINGS)
        return evaluate(refitted(encoder, refit), corpus, MEASURED, SETTINGS)

    before, after = old_decoder(encoder_of(tensors)), old_decoder(turned)
    assert after > 1.5 * before
    assert follows(turned) < 1.2 * follows(encoder_of(tensors))
    # One that really forgot is found out by both.
    random = encoder_of(fresh(MODEL, seed=9).state_dict())
    assert follows(random) > 1.1 * follows(encoder_of(tensors))


def test_refitting_leaves_the_encoder_as_it_is_and_gives_the_same_bits_again(corpus: Corpus) -> None:
    encoder = encoder_of(fresh(MODEL, seed=3).state_dict())
    first, second = (refitted(encoder, Refit(MODEL, SETTINGS, corpus, FIT, 5)).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], tensor) for name, tensor in encoder.items())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(
        not torch.equal(first[n], t) for n, t in decoder_of(fresh(MODEL, seed=SETTINGS.seed).state_dict()).items()
    )


def test_an_image_that_is_encoded_once_has_the_loss_that_evaluating_gives(corpus: Corpus) -> None:
    model = fresh(MODEL, SETTINGS.mask_ratio, norm_pix=True)
    whole = evaluate(model, corpus, MEASURED, SETTINGS)
    assert loss_of(model, encoded(model, corpus, MEASURED, SETTINGS), SETTINGS) == pytest.approx(whole, rel=1e-6)


def test_a_decoder_that_follows_leaves_the_encoder_and_gives_the_same_bits_again(corpus: Corpus) -> None:
    start = fresh(MODEL, SETTINGS.mask_ratio).state_dict()
    results = []
    for _ in range(2):
        model = fresh(MODEL, SETTINGS.mask_ratio)
        follow(model, encoded(model, corpus, FIT, SETTINGS), SETTINGS, 5)
        results.append(model.state_dict())
    assert all(torch.equal(results[0][n], t) for n, t in encoder_of(dict(start)).items())
    assert not torch.equal(results[0]["decoder_pred.weight"], start["decoder_pred.weight"])
    assert all(torch.equal(results[0][name], results[1][name]) for name in start)
