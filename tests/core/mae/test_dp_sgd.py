"""DP-SGD by patient: what one patient adds to a step is bounded, the noise is as large as it says, and nothing else is learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from usfmae.core.config import AugmentSettings, DpSettings, ModelSettings, TrainRecipe, TrainSettings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.loader import Prepared
from usfmae.core.corpus.patients import PatientLoader, PatientSampler
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.mae.model import MaskedAutoencoder, fresh
from usfmae.core.mae.optimizer_step import PatientStepper, never
from usfmae.core.mae.train import TrainContext, TrainPlan, train

MODEL = ModelSettings(
    image_size=32, patch_size=8, width=16, depth=3, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
)
SETTINGS = TrainSettings(
    batch_size=8,
    micro_batch=8,
    lr=1e-2,
    warmup=0,
    precision="fp32",
    checkpoint_steps=1,
    dp=DpSettings(noise=1.0, clip=0.05),
    augment=AugmentSettings(rotation=10),
)
RECIPE = TrainRecipe.of(SETTINGS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Forty patients with one to three images."""
    random, root = np.random.default_rng(0), tmp_path_factory.mktemp("corpus")
    images = []
    for patient in range(40):
        for _ in range(1 + patient % 3):
            pixels = random.integers(0, 256, (32, 32), dtype=np.uint8)
            images.append(PackedImage(pixels, f"{len(images):064d}", f"patient-{patient:02d}"))
    write_shard(root, "all", images)
    return Corpus([root], verify=False)


def rows(batch: Prepared, chosen: list[int]) -> Prepared:
    return Prepared(batch.step, batch.pixels[chosen], batch.noise[chosen], tuple(batch.ids[i] for i in chosen))


def gradients(batch: Prepared, noise: float, clip: float = 0.05) -> np.ndarray:
    """What the optimizer sees of a batch, times the expected batch: all trained weights in a row."""
    recipe = RECIPE.model_copy(update={"dp": DpSettings(noise=noise, clip=clip)})
    stepper = PatientStepper(fresh(MODEL, 0.25, False, 1), recipe)
    assert stepper.gradients(batch, never) is not None
    return np.concatenate([p.grad.reshape(-1).numpy() for p in stepper.trained]) * recipe.batch_size


@pytest.fixture(scope="module")
def batch(corpus) -> Prepared:
    loader = PatientLoader(corpus, np.arange(len(corpus)), MODEL, SETTINGS)
    return next(made for step in range(20) if len(made := loader.prepare(step)) >= 6)


def test_one_patient_changes_a_step_by_the_clip_at_most(batch):
    whole = gradients(batch, 1e-12)
    for left_out in range(len(batch)):
        others = gradients(rows(batch, [i for i in range(len(batch)) if i != left_out]), 1e-12)
        assert 0.005 < np.linalg.norm(whole - others) <= 0.05 * 1.001


def test_a_gradient_within_the_clip_stays_as_it_is(batch):
    model = fresh(MODEL, 0.25, False, 1)
    stepper = PatientStepper(model, RECIPE.model_copy(update={"dp": DpSettings(noise=1e-12, clip=1e3)}))
    stepper.gradients(batch, never)
    private = [p.grad.clone() * SETTINGS.batch_size / len(batch) for p in stepper.trained]
    model.zero_grad()
    plain = PatientStepper(model, RECIPE)
    super(PatientStepper, plain).gradients(batch, never)
    for mine, theirs in zip(private, plain.trained, strict=True):
        expected = theirs.grad * SETTINGS.batch_size / len(batch)
        assert torch.allclose(mine, expected, rtol=1e-3, atol=1e-7)


def test_the_noise_is_as_large_as_it_says_and_there_without_a_patient(batch):
    drawn = gradients(rows(batch, []), 3.0)
    assert abs(drawn.std() - 3.0 * 0.05) < 0.01 and abs(drawn.mean()) < 0.01


def test_a_gradient_that_is_not_finite_counts_as_none():
    stepper = PatientStepper(fresh(MODEL, 0.25, False, 1), RECIPE)
    sums = [torch.zeros_like(p) for p in stepper.trained]
    stepper._add_cut(sums, [torch.full_like(p, float("nan")) for p in stepper.trained])
    assert not any(summed.any() for summed in sums)


def test_patients_are_in_a_step_by_chance_with_one_image_each(corpus):
    sampler = PatientSampler(np.arange(len(corpus)), corpus.groups, 8, 7)
    assert sampler.share == 0.2
    times, sizes, images = np.zeros(40), [], set()
    for step in range(2000):
        positions = sampler.batch(step)
        patients = [int(corpus.groups[p][-2:]) for p in positions]
        assert len(set(patients)) == len(patients)
        times[patients] += 1
        sizes.append(len(positions))
        images.update(positions.tolist())
    assert abs(times / 2000 - 0.2).max() < 0.04  # 4.5 standard errors
    assert abs(np.var(sizes) - 40 * 0.2 * 0.8) < 1 and len(images) == len(corpus)


def test_the_last_block_alone_is_trained(corpus):
    model = fresh(MODEL, 0.25, False, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, corpus, SETTINGS, TrainPlan(np.arange(len(corpus)), 3))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith(("blocks.2.", "norm.")) for name in moved)


def test_a_training_that_was_cut_ends_with_the_same_bits(corpus, tmp_path):
    def run(state, stop_after: int | None) -> MaskedAutoencoder:
        model = fresh(MODEL, 0.25, False, 1)
        plan = TrainPlan(np.arange(len(corpus)), 6)
        stops = TrainContext(state, on_step=lambda record: record.step == stop_after)
        train(model, corpus, SETTINGS, plan, stops)
        return model

    whole = run(tmp_path / "whole", None)
    run(tmp_path / "cut", 3)
    gone_on = run(tmp_path / "cut", None)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), gone_on.state_dict().values(), strict=True)
    )


def test_another_seed_draws_other_noise(batch):
    other = PatientStepper(fresh(MODEL, 0.25, False, 1), RECIPE.model_copy(update={"seed": 43}))
    other.gradients(rows(batch, []), never)
    values = np.concatenate([p.grad.reshape(-1).numpy() for p in other.trained]) * SETTINGS.batch_size
    assert abs(np.corrcoef(values, gradients(rows(batch, []), 1.0))[0, 1]) < 0.05
