"""A frozen teacher's features as the target: it stays frozen, it stays outside the weights, and the student learns it."""

from __future__ import annotations

import pytest
import torch

from usfmae.core.checkpoint import encoder_of
from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.errors import CheckpointError, UsageError
from usfmae.core.mae.model import fresh
from usfmae.core.mae.targets import student

MODEL = ModelSettings(
    image_size=32, patch_size=8, width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
)
LATENTS = TrainSettings(target="latents", mask_ratio=0.5)


def test_the_student_learns_the_teachers_features_and_the_teacher_stays() -> None:
    teacher = fresh(MODEL, seed=1)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    model = student(MODEL, LATENTS, encoder_of(teacher.state_dict()), MODEL)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(8, 16, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(images, noise, full=False)[0]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    frozen = model._teacher[0]  # type: ignore[attr-defined]
    assert all(torch.equal(frozen.state_dict()[n], before[n]) for n in encoder_of(before))


def test_weights_hold_the_student_alone() -> None:
    model = student(MODEL, LATENTS, encoder_of(fresh(MODEL).state_dict()), MODEL)
    assert set(encoder_of(model.state_dict())) == set(encoder_of(fresh(MODEL).state_dict()))
    assert {n for n in model.state_dict() if n not in fresh(MODEL).state_dict()} == {
        "decoder_latent.weight",
        "decoder_latent.bias",
    }


def test_a_mixture_counts_pixels_too() -> None:
    settings = TrainSettings(target="mixture", latent_share=0.5, mask_ratio=0.5)
    model = student(MODEL, settings, encoder_of(fresh(MODEL).state_dict()), MODEL)
    model(torch.randn(2, 3, 32, 32), full=False)[0].backward()
    assert model.decoder_pred.weight.grad is not None and model.decoder_latent.weight.grad is not None


def test_pixels_give_the_plain_model() -> None:
    plain = student(MODEL, TrainSettings(), None, MODEL)
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    assert torch.equal(plain(images, noise)[0], fresh(MODEL)(images, noise)[0])


def test_a_missing_or_unfit_teacher_is_refused() -> None:
    with pytest.raises(UsageError, match="frozen teacher"):
        student(MODEL, LATENTS, None, MODEL)
    other = MODEL.model_copy(update={"patch_size": 4})
    with pytest.raises(CheckpointError, match="patch size"):
        student(MODEL, LATENTS, encoder_of(fresh(other).state_dict()), other)
