"""What an incoming encoder does on a site's images: trained and fresh ones pass, crafted ones do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from usfmae.client.rounds import encoder_behaviour, model_inspection
from usfmae.core.config import ModelSettings
from usfmae.core.errors import PolicyError
from usfmae.core.mae.model import MaskedAutoencoder, fresh

MODEL = ModelSettings(
    image_size=32, patch_size=8, width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
)
Craft = Callable[[MaskedAutoencoder], None]


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(1)
    coarse = torch.rand(6, 3, 8, 8)
    return torch.nn.functional.interpolate(coarse, 32, mode="bilinear") * 3


def imprint(model: MaskedAutoencoder, noise: float = 0.0) -> None:
    """Rows of one direction with biases that cut it into bins (Fowl et al. 2022), hidden under noise."""
    torch.manual_seed(2)
    layer = model.blocks[0].mlp.fc1
    rows = torch.randn(32).expand(128, 32) + noise * torch.randn(128, 32)
    layer.weight.data[:] = rows
    layer.bias.data[:] = torch.linspace(-8, 8, 128)


def dead_branch(model: MaskedAutoencoder) -> None:
    model.blocks[1].attn.proj.weight.data *= 1e-6


def drowned(model: MaskedAutoencoder) -> None:
    model.blocks[0].mlp.fc1.bias.data[:40] = -3e3


def dead_input(model: MaskedAutoencoder) -> None:
    model.patch_embed.proj.weight.data[:8] = 0


def test_fresh_and_trained_encoders_pass(images: torch.Tensor) -> None:
    model = fresh(MODEL, seed=4)
    encoder_behaviour.inspect(model, images)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(60):
        model(images)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    encoder_behaviour.inspect(model, images)
    assert model.training, "the model is handed back as it came"


@pytest.mark.parametrize(
    ("craft", "why"),
    [
        (imprint, "one direction"),
        (lambda model: imprint(model, 0.03), "one direction"),
        (dead_branch, "attn branch"),
        (drowned, "do not change"),
        (dead_input, "patch_embed"),
    ],
)
def test_crafted_encoders_do_not(images: torch.Tensor, craft: Craft, why: str) -> None:
    model = fresh(MODEL, seed=4)
    craft(model)
    with pytest.raises(PolicyError, match=why):
        encoder_behaviour.inspect(model, images)


def test_weights_that_overflow_on_an_image_are_refused(images: torch.Tensor) -> None:
    model = fresh(MODEL, seed=4)
    model.blocks[1].mlp.fc2.weight.data *= float("inf")
    with pytest.raises(PolicyError):
        encoder_behaviour.inspect(model, images)


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.1, 0.3])
def test_copies_under_noise_are_found_in_the_weights(noise: float) -> None:
    model = fresh(MODEL, seed=4)
    imprint(model, noise)
    weight = model.blocks[0].mlp.fc1.weight.detach().numpy()
    assert model_inspection.rows_alike(weight) == 0, "they are no copies by value"
    assert model_inspection.rows_aligned(weight) > 0.9


def test_copies_beside_a_common_mean_are_found_too() -> None:
    """What is alike shows only when the mean, a strong direction of its own, is taken away."""
    random = torch.Generator().manual_seed(3)
    mean, copied = torch.randn(2, 64, generator=random)
    rows = 5 * mean + torch.linspace(-1, 1, 96)[:, None] * copied
    rows += 0.02 * torch.randn(96, 64, generator=random)
    assert model_inspection.rows_aligned(rows.numpy()) > 0.5


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_a_fresh_model_have_no_common_direction(seed: int) -> None:
    for name, tensor in fresh(MODEL, seed=seed).state_dict().items():
        if tensor.ndim > 1 and "pos_embed" not in name:
            assert model_inspection.rows_aligned(tensor.numpy()) <= 0.05, name
