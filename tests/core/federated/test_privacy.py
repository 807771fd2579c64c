"""A site's floor: every means by which a coordinator reads one picture is outside it, an honest recipe is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from usfmae.core.config import ModelSettings, TrainRecipe
from usfmae.core.config.privacy import PrivacySettings
from usfmae.core.config.train import AugmentSettings, Recipe
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.errors import PolicyError
from usfmae.core.federated import privacy
from usfmae.core.federated.messages import TrainRequest
from usfmae.core.federated.privacy import Drawn
from usfmae.core.mae.model import fresh
from usfmae.core.mae.presets import PRESETS, preset

LARGEST = 4e9  # bytes
QUIET = AugmentSettings(rotation=0, flips=True, zoom_min=1, zoom_max=1)


def request(**changes: object) -> TrainRequest:
    values = {"campaign": "c", "round": 1, "base": "b", "global_step": 0, "steps": 200, "recipe": "r", **changes}
    return TrainRequest(**values)  # type: ignore[arg-type]


def found(train: dict[str, object], model: dict[str, object], **asked: object) -> list[str]:
    recipe = Recipe(ModelSettings(**model), TrainRecipe(**train))  # type: ignore[arg-type]
    return [breach.figure for breach in privacy.breaches(request(**asked), recipe, PrivacySettings(), LARGEST)]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_within_the_default_floor(name: str) -> None:
    model, train = preset(name)
    privacy.check(request(), Recipe(model, TrainRecipe.of(train)), PrivacySettings(), LARGEST)


@pytest.mark.parametrize(
    ("train", "model", "asked", "figure"),
    [
        ({"batch_size": 31}, {}, {}, "batch_size"),
        ({}, {}, {"steps": 19}, "steps"),
        ({"batch_size": 32}, {}, {"steps": 20, "round": 10**15}, "round"),
        ({}, {}, {"steps": 10**9}, "steps"),
        ({}, {}, {"global_step": 10**12}, "global_step"),
        ({}, {}, {"encoding": "fp32"}, "encoding"),
        ({"mask_ratio": 0.93}, {}, {}, "visible share"),
        ({"mask_ratio": 0.7}, {"patch_size": 56}, {}, "visible patches"),
        ({"mask_ratio": 0.001}, {}, {}, "masked share"),
        ({"lr": 1e4}, {}, {}, "lr"),
        ({"min_lr": 1e4}, {}, {}, "lr"),
        ({"lr": float("inf")}, {}, {}, "lr"),
        ({"clip": 1e-9}, {}, {}, "clip"),
        ({"weight_decay": 2.0}, {}, {}, "weight_decay"),
        ({"augment": QUIET}, {}, {}, "augmentation"),
        ({"std": (1e6, 1e6, 1e6)}, {}, {}, "std"),
        ({"std": (1e-6, 0.2, 0.2)}, {}, {}, "std"),
        ({"mean": (0.5, -9.0, 0.5)}, {}, {}, "mean"),
        ({"betas": (0.9, 0.999999)}, {}, {}, "betas"),
        ({"proximal": 1e9}, {}, {}, "proximal"),
        ({"augment": AugmentSettings(zoom_min=0.05, zoom_max=0.1)}, {}, {}, "augment.zoom_min"),
        ({"augment": AugmentSettings(zoom_min=200, zoom_max=400)}, {}, {}, "augment.zoom_max"),
        ({"steps": 1, "warmup": 0.0}, {}, {}, "steps that change the weights"),
        ({"steps": 1, "warmup": 0.0, "batch_size": 32}, {}, {}, "own images in working steps"),
        ({"steps": 102, "warmup": 0.0, "origin": 100}, {}, {"global_step": 101}, "steps that change the weights"),
        ({}, {"decoder_depth": 200_000}, {}, "bytes of the model"),
        ({}, {"image_size": 1024, "patch_size": 2}, {}, "patches an image"),
    ],
)
def test_what_a_curious_coordinator_asks_is_outside(
    train: dict[str, object], model: dict[str, object], asked: dict[str, object], figure: str
) -> None:
    assert figure in found(train, model, **asked)


def test_few_draws_are_outside_although_each_figure_is_within() -> None:
    floor = PrivacySettings(min_images=1000)
    for replay, own_draws in ((0.0, 512), (0.25, 384)):  # replayed public images do not count
        recipe = Recipe(ModelSettings(), TrainRecipe(batch_size=32, replay=replay))
        breaches = privacy.breaches(request(steps=20), recipe, floor, LARGEST)
        said = f"own images in working steps is {own_draws}, this site allows at least 1000"
        assert [str(breach) for breach in breaches] == [said]


def test_a_refusal_names_figure_bound_and_setting() -> None:
    recipe = Recipe(ModelSettings(), TrainRecipe(batch_size=1))
    with pytest.raises(PolicyError, match="batch_size is 1, this site allows at least 32") as raised:
        privacy.check(request(), recipe, PrivacySettings(), LARGEST)
    assert "privacy.min_batch" in raised.value.do


def test_weights_are_counted_as_the_model_has_them() -> None:
    small = ModelSettings(
        image_size=32, patch_size=8, width=32, depth=2, heads=2, decoder_width=16, decoder_depth=3, decoder_heads=2
    )
    assert privacy.parameters(small) == sum(tensor.numel() for tensor in fresh(small).state_dict().values())


def test_draws_are_counted_by_image_and_by_patient_without_public_ones() -> None:
    groups = ["a", "a", "b", "c", "public"]
    draws = np.array([0, 0, 1, 2, 2, 2, 4, 4])
    assert privacy.drawn(draws, groups, np.array([0, 1, 2, 3])) == Drawn(3, 2, 0.5)
    assert privacy.drawn(np.array([4]), groups, np.array([0])) == Drawn(0, 0, 0.0)


def test_copies_of_a_picture_are_one_image_of_one_patient(tmp_path: Path) -> None:
    """Sent again under other names, studies and patients: as many files as one likes hold no more pictures."""
    random = np.random.default_rng(0)
    one, other = (random.integers(0, 255, (32, 32), dtype=np.uint8) for _ in range(2))
    items = [PackedImage(pixels, f"i{n}", f"g{n}") for n, pixels in enumerate([one] * 6 + [other, one.T.copy()])]
    write_shard(tmp_path, "t", items)
    corpus = Corpus([tmp_path])
    draws = np.array([5, 5, 0, 6, 3, 7])
    same = privacy.same_pixels(corpus, draws)
    assert privacy.drawn(draws, corpus.groups, np.arange(8)).images == 5
    assert privacy.drawn(same, corpus.groups, np.arange(8)) == Drawn(3, 3, 4 / 6)


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        (Drawn(255, 60, 0.05), "images drawn is 255"),
        (Drawn(300, 49, 0.05), "patients drawn is 49"),
        (Drawn(300, 60, 0.11), "largest share of one patient is 0.11"),
    ],
)
def test_an_update_on_too_few_or_on_one_is_refused(counts: Drawn, why: str) -> None:
    privacy.check_drawn(Drawn(256, 50, 0.1), PrivacySettings())
    with pytest.raises(PolicyError, match=why):
        privacy.check_drawn(counts, PrivacySettings())
