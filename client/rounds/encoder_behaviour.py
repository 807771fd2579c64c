"""How an incoming encoder behaves on this site's own images, before anything is trained on it.

Weights that are made to recover images need not look odd: copies hidden under noise have other values and the same
effect. What they do shows: a whole layer answers along one direction (Fowl et al. 2022, arXiv:2110.13057), units whose
bias drowns their input never change, a block whose branch is switched off hands its input on. Trained encoders do none
of it. One forward pass over a few images; measured on the tokens of patches, not on the class token.

Measured for the bounds: a fresh model and one trained for 250 steps (112 pixels, 4 blocks of 192), on breast ultrasound
and on simulated tissue: no constant unit, a largest share of one direction of 0.56, branches of 0.1 to 1 of their input.
"""

from __future__ import annotations

import re
from functools import partial

import torch
from torch import Tensor, nn

from usfmae.core.errors import PolicyError
from usfmae.core.mae.model import MLP, Attention, Block, MaskedAutoencoder, PatchEmbed

CONSTANT = 1e-3  # a unit that varies less than this share of its size says nothing of its input
MOST_CONSTANT = 0.05  # share of such units in a layer
LARGEST_DIRECTION = 0.9  # share of a layer's variance along one direction, its units scaled alike
SMALLEST_BRANCH = 1e-3  # size of what a block's branch adds, in sizes of its input


PASSES = 20  # of the power iteration that finds a layer's first direction


@torch.no_grad()
def inspect(model: MaskedAutoencoder, images: Tensor) -> None:
    """PolicyError where the encoder behaves on `images` (B, 3, S, S), normalised, as no trained one does."""
    watch, was_training = _Watch(), model.training
    handles = [module.register_forward_hook(partial(watch.see, name)) for name, module in _layers(model)]
    try:
        model.eval()
        features = model.features(images)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    if not bool(torch.isfinite(features).all()):
        raise PolicyError("incoming encoder", "gives NaN or infinity on this site's images", "refused")
    for layer, problem in watch.problems:
        raise PolicyError(f"incoming encoder, layer {layer}", problem, "refused; ask the coordinator")


def _layers(model: MaskedAutoencoder) -> list[tuple[str, nn.Module]]:
    """The patch projection, and of each block of the encoder its layers, its two branches and itself."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if name == "patch_embed" or re.fullmatch(r"blocks\.\d+(\.attn(\.qkv)?|\.mlp(\.fc1|\.fc2)?)?", name)
    ]


class _Watch:
    """What is seen of each layer in one forward pass."""

    def __init__(self) -> None:
        self.problems: list[tuple[str, str]] = []
        self.sizes: dict[str, float] = {}  # of what each branch adds

    def see(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        problem = ""
        if isinstance(module, Attention | MLP):
            self.sizes[name] = _size(output)
        elif isinstance(module, Block):
            problem = self._branches(name, _size(inputs[0]))
        else:
            values = output if isinstance(module, PatchEmbed) else output[:, 1:]  # without the class token
            units = values.flatten(0, 1).float()  # (tokens, units)
            problem = constant(units) or (one_direction(units) if name.endswith(".fc1") else "")
        if problem:
            self.problems.append((name, problem))

    def _branches(self, block: str, size: float) -> str:
        for branch in ("attn", "mlp"):
            share = self.sizes[f"{block}.{branch}"] / max(size, 1e-12)
            if share < SMALLEST_BRANCH:
                return f"its {branch} branch adds {share:.1e} of its input: the block hands its input on"
        return ""


def _size(values: Tensor) -> float:
    """Root mean square."""
    return float(values.float().square().mean().sqrt())


def constant(units: Tensor) -> str:
    """Whether units (T, H) stay the same for every input: dead, or with a bias far beyond their input."""
    spread, size = units.std(0), units.square().mean(0).sqrt()
    share = float((spread <= CONSTANT * size).float().mean())
    allowed = f"at most {MOST_CONSTANT:.0%}"
    return f"{share:.0%} of its units do not change with the image, {allowed}" if share > MOST_CONSTANT else ""


def one_direction(units: Tensor) -> str:
    """Whether units (T, H) all measure the same thing, however their weights differ."""
    centred = units - units.mean(0)
    scaled = centred / centred.norm(dim=0).clamp_min(1e-12)  # each unit counts alike
    along = torch.ones(scaled.shape[1], device=scaled.device)
    for _ in range(PASSES):  # power iteration: towards the first right singular vector
        along = scaled.T @ (scaled @ along)
        along = along / along.norm().clamp_min(1e-12)
    share = float((scaled @ along).square().sum() / scaled.square().sum().clamp_min(1e-12))
    allowed = f"at most {LARGEST_DIRECTION:.0%}"
    return f"{share:.0%} of what it measures is one direction, {allowed}" if share > LARGEST_DIRECTION else ""
