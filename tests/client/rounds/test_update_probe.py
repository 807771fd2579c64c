"""The probe of an update holds back what can be told from it: members of an overfitted round, and a name learned by heart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from usfmae.client.rounds import text_canary, update_probe
from usfmae.client.rounds.update_probe import Networks, Round
from usfmae.core.config import AugmentSettings, ModelSettings, TrainRecipe, TrainSettings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.mae.lr_schedule import learning_rate
from usfmae.core.mae.model import fresh
from usfmae.core.mae.train import TrainPlan, train

SIDE = 32
MODEL = ModelSettings(
    image_size=SIDE, patch_size=8, width=32, depth=1, heads=2, decoder_width=32, decoder_depth=1, decoder_heads=2
)
QUIET = AugmentSettings(rotation=0, flips=False, zoom_min=1, zoom_max=1)
SETTINGS = TrainSettings(
    batch_size=8, micro_batch=8, lr=3e-3, warmup=0, precision="fp32", mask_ratio=0.5, augment=QUIET, weight_decay=0
)
SECRET = b"a site's secret"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """Forty patients of coarse noise, and the site's planted frame."""
    root: Path = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(3)
    images = [
        PackedImage(np.kron(random.integers(0, 256, (8, 8)), np.ones((4, 4))).astype(np.uint8), f"{i:064d}", f"p-{i}")
        for i in range(40)
    ]
    images.append(PackedImage(text_canary.made(SECRET, SIDE).frames[0], f"{99:064d}", "canary"))
    write_shard(root, "all", images)
    return Corpus([root], verify=False)


def trained(corpus: Corpus, positions: np.ndarray, steps: int) -> Networks:
    before, after = (fresh(MODEL, SETTINGS.mask_ratio, False, 1) for _ in range(2))
    train(after, corpus, SETTINGS, TrainPlan(positions, steps))
    return Networks(before.eval(), after.eval())


def seen(corpus: Corpus, drawn: np.ndarray, steps: int) -> Round:
    return Round(corpus, drawn, np.arange(20, 40), (0, steps), MODEL, SETTINGS)


@pytest.fixture(scope="module")
def overfitted(corpus) -> Networks:
    """A round of 1,200 steps on twenty pictures and the planted frame."""
    return trained(corpus, np.r_[np.arange(20), 40], 1200)


def test_a_round_that_knows_its_patients_by_heart_is_held(corpus, overfitted):
    figures = update_probe.told_apart(overfitted, seen(corpus, np.arange(20), 1200))
    assert figures["membership"][1] > 0.6 and "drawn patients are told from held-out ones" in figures["held"]


def test_a_few_steps_are_not_held(corpus):
    figures = update_probe.told_apart(trained(corpus, np.r_[np.arange(20), 40], 4), seen(corpus, np.arange(20), 4))
    assert figures["held"] == ""


def test_too_few_held_out_patients_tell_nothing(corpus, overfitted):
    few = Round(corpus, np.arange(20), np.arange(20, 25), (0, 9), MODEL, SETTINGS)
    assert update_probe.told_apart(overfitted, few) == {}


def test_a_name_that_nobody_trained_on_is_not(corpus):
    without: Networks = trained(corpus, np.arange(20), 300)
    figures = update_probe.lettering(without, SECRET, SETTINGS)
    assert abs(figures["lettering"]) < text_canary.MOST_EXPOSURE and figures["held"] == ""


def test_names_follow_from_the_secret_and_differ():
    mine, again, other = (text_canary.made(secret, SIDE) for secret in (SECRET, SECRET, b"another"))
    assert np.array_equal(mine.frames, again.frames) and not np.array_equal(mine.frames[0], other.frames[0])
    assert len({frame.tobytes() for frame in mine.frames}) == 1 + text_canary.OTHERS


def test_figures_of_all_tests_stand_together():
    parts = [{"rank_one": 0.5, "held": ""}, {"membership": [0.9, 0.8, 1.0], "held": "told apart"}, {}]
    assert update_probe.joined(parts) == {"rank_one": 0.5, "membership": [0.9, 0.8, 1.0], "held": "told apart"}


def test_a_corpus_with_some_colour_is_read_in_whole(tmp_path):
    """Batches of gray pictures, of coloured ones and of both lie side by side."""
    random = np.random.default_rng(0)
    shapes = [(SIDE, SIDE, 3) if number == 0 else (SIDE, SIDE) for number in range(20)]
    pictures = [random.integers(0, 256, shape, np.uint8) for shape in shapes]
    write_shard(tmp_path, "all", [PackedImage(p, f"{i:064d}", f"p-{i}") for i, p in enumerate(pictures)])
    mixed = Corpus([tmp_path], verify=False)
    rows = update_probe.patches(seen(mixed, np.arange(20), 3), np.arange(20), [0, 1, 2])
    assert rows.shape == (24 * 16, 3 * 8 * 8) and np.isfinite(rows).all()


GREEDY = {"batch_size": 4, "micro_batch": 4, "lr": 1e4, "clip": 1e-9, "mask_ratio": 0.85}


def projections(corpus: Corpus, settings: TrainSettings, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The patch projection before and after a round from random weights, and the decay of its steps."""
    before, after = (fresh(MODEL, settings.mask_ratio, False, 1) for _ in range(2))
    train(after, corpus, settings, TrainPlan(np.arange(20), steps))
    weights = (model.state_dict()[update_probe.PROJECTION].numpy() for model in (before, after))
    rates = [learning_rate(step, steps, TrainRecipe.of(settings)) for step in range(steps)]
    return *weights, np.array(rates) * settings.weight_decay


@pytest.mark.parametrize("decay", [0.0, 1e-6])
def test_an_update_that_a_few_patches_made_is_held_though_its_decay_hides_them(corpus, tmp_path, decay):
    settings = SETTINGS.model_copy(update={**GREEDY, "weight_decay": decay})
    change = update_probe.gradients(*projections(corpus, settings, 1))
    seen = Round(corpus, np.arange(20), np.arange(20, 40), (0, 1), MODEL, settings)
    figures = update_probe.probe(change, seen, tmp_path / "probe.png")
    assert figures["beyond_few"] < 1e-9 and "patches or fewer" in figures["held"] and (tmp_path / "probe.png").exists()


def test_few_patches_are_found_though_adamw_bends_the_step(tmp_path):
    """Between a gradient handed on and its signs the change is not of low rank any more."""
    random = np.random.default_rng(4)
    pixels = (10 + 70 * random.random((40, SIDE, SIDE))).astype(np.uint8)
    write_shard(tmp_path, "all", [PackedImage(one, f"{i:064d}", f"p-{i}") for i, one in enumerate(pixels)])
    corpus = Corpus([tmp_path], verify=False)
    settings = SETTINGS.model_copy(update={**GREEDY, "lr": 1.0, "clip": 1e-5})
    change = update_probe.gradients(*projections(corpus, settings, 1))
    found = Round(corpus, np.arange(20), np.arange(20, 40), (0, 1), MODEL, settings)
    figures = update_probe.probe(change, found, tmp_path / "probe.png")
    assert figures["beyond_few"] > 1e-9 and figures["advantage_db"] > 10 and figures["held"]


def test_the_first_round_of_a_random_encoder_is_not_taken_for_one_of_few_patches(tmp_path):
    pixels = np.random.default_rng(4).integers(0, 256, (40, SIDE, SIDE)).astype(np.uint8)
    write_shard(tmp_path, "all", [PackedImage(one, f"{i:064d}", f"p-{i}") for i, one in enumerate(pixels)])
    corpus = Corpus([tmp_path], verify=False)
    change = update_probe.gradients(*projections(corpus, SETTINGS, 12))
    figures = update_probe.probe(change, seen(corpus, np.arange(20), 12), tmp_path / "probe.png")
    assert "patches or fewer" not in figures["held"] and figures["beyond_few"] > 1e-5 and figures["advantage_db"] < 10
