"""What an incoming model learns from: fresh and trained ones from every image, trap weights and crafted decoders not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from usfmae.client.rounds import encoder_behaviour, gradient_behaviour
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
    coarse = torch.rand(8, 3, 8, 8)
    return torch.nn.functional.interpolate(coarse, 32, mode="bilinear") * 3


def traps(model: MaskedAutoencoder) -> None:
    """Rows that all differ, a third under a bias that only a rare token lifts: nothing else gives them a gradient."""
    layer = model.blocks[0].mlp.fc1
    layer.weight.data[:40] *= 20
    layer.bias.data[:40] = -4.5 * layer.weight[:40].norm(dim=1).detach()


def faint_decoder(model: MaskedAutoencoder) -> None:
    model.decoder_embed.weight.data *= 1e-7


def gated_decoder(model: MaskedAutoencoder) -> None:
    """The prediction reads units that most images leave off: what only one image has alone comes back."""
    block = model.decoder_blocks[0]
    model.decoder_pred.weight.data[:, 8:] = 0
    for weight in (block.attn.proj.weight, model.decoder_embed.weight):
        weight.data[:8] = 0
    block.mlp.fc1.bias.data[:] = -200
    block.mlp.fc1.weight.data *= 20
    model.decoder_norm.weight.data[:] = 1e-9


def one_place(model: MaskedAutoencoder) -> None:
    model.pos_embed.data[:, 1:] *= 0
    model.pos_embed.data[:, 5] = 50


def test_models_that_learn_from_every_image_pass(images: torch.Tensor) -> None:
    model = fresh(MODEL, seed=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradient_behaviour.inspect(model, images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(60):
        model(images)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    gradient_behaviour.inspect(model, images)


@pytest.mark.parametrize(
    ("craft", "why"),
    [
        (traps, "learn from one image in some"),
        (faint_decoder, "AdamW would hand them on"),
        (gated_decoder, "gradient"),
        (one_place, "pos_embed is not the fixed table"),
    ],
)
def test_models_that_wait_for_one_image_do_not(images: torch.Tensor, craft: Craft, why: str) -> None:
    model = fresh(MODEL, seed=4)
    craft(model)
    with pytest.raises(PolicyError, match=why):
        gradient_behaviour.inspect(model, images)


def test_trap_weights_are_not_seen_by_what_the_encoder_does_alone(images: torch.Tensor) -> None:
    model = fresh(MODEL, seed=4)
    traps(model)
    encoder_behaviour.inspect(model, images)  # they answer to the image, each along its own direction
