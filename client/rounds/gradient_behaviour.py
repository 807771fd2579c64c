"""What an incoming model would learn from: whether every picture of this site, or one that somebody waits for.

Units under a bias that only a rare token lifts ("trap weights", Boenisch et al. 2023, arXiv:2112.02918) look like any
others: their rows differ, their values are small, and they answer to the image. Their gradient does not: it is zero but
for the one picture that reaches them, which then stands in the update alone, however many were drawn. A decoder can be
made to let through the gradient of one picture in the same way, or of all so faintly that AdamW passes it on as it is.
One forward and backward pass for each of a few images, as training computes it; nothing is changed.

Measured for the bounds: docs/threat-model.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from usfmae.core.errors import PolicyError
from usfmae.core.mae.model import MaskedAutoencoder, sincos

FEWEST_IMAGES = 4  # of fewer, nothing is said
SMALLEST_SHARE = 1e-3  # size of the middle image's gradient, in sizes of the largest
SMALLEST_SIZE = 1e-7  # root mean square of a gradient; AdamW's epsilon is 1e-8
SHARED = 1.5  # images that a row's gradient comes from, at least
MOST_TRAPS = 0.2  # share of a layer's rows whose gradient comes from fewer
TABLE_ERROR = 0.5  # largest difference of a position table from the fixed one, whose values are within 1


def inspect(model: MaskedAutoencoder, images: Tensor) -> None:
    """PolicyError where the gradients of `images` (B, 3, S, S), normalised, are not as of a model that learns from all."""
    _check_tables(model)
    if len(images) < FEWEST_IMAGES:
        return
    rows = gradients(model, images)
    whole = torch.stack([torch.stack([r.square().sum() for r in image.values()]).sum().sqrt() for image in rows])
    count = sum(model.get_parameter(name).numel() for name in rows[0])
    middle = float(whole.median())
    if not torch.isfinite(whole).all() or middle < SMALLEST_SHARE * float(whole.max()):
        raise _refused("one image in some has a gradient, the others next to none")
    if middle < SMALLEST_SIZE * count**0.5:
        raise _refused(f"gradients of {middle / count**0.5:.1e}: AdamW would hand them on as they are")
    for name in rows[0]:
        share = trapped(torch.stack([image[name] for image in rows]))
        if share > MOST_TRAPS:
            raise _refused(f"{share:.0%} of {name} learn from one image in some, at most {MOST_TRAPS:.0%}")


def gradients(model: MaskedAutoencoder, images: Tensor) -> list[dict[str, Tensor]]:
    """For each image (B, 3, S, S), the length of the gradient of each row of the encoder's matrices, by name: (rows,)."""
    names = [n for n, p in model.named_parameters() if p.requires_grad and p.ndim > 1 and "decoder" not in n]
    names = [n for n in names if len(model.get_parameter(n)) > 1]  # matrices, not tokens
    patches = (model.settings.image_size // model.settings.patch_size) ** 2
    noise = torch.rand(len(images), patches, generator=torch.Generator().manual_seed(0)).to(images.device)
    rows = []
    with torch.enable_grad():
        for image, mask in zip(images, noise, strict=True):
            loss = model(image[None], mask[None], full=False)[0]
            parts = torch.autograd.grad(loss, [model.get_parameter(n) for n in names])
            rows.append({n: g.flatten(1).float().norm(dim=1) for n, g in zip(names, parts, strict=True)})
    return rows


def trapped(rows: Tensor) -> float:
    """Share of rows whose gradient lengths (B, rows) come from hardly more than one image, or from none."""
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)  # an image that is hard weighs no more than another
    several = rows.sum(0).square() / rows.square().sum(0).clamp_min(1e-45)  # (rows,): 1 of one image, B of all alike
    silent = rows.sum(0) <= 1e-4 * rows.sum(0).median()
    return float((silent | (several < SHARED)).float().mean())


def _check_tables(model: MaskedAutoencoder) -> None:
    """Positions are a fixed table: other values would single a place out."""
    grid = model.settings.image_size // model.settings.patch_size
    for name in ("pos_embed", "decoder_pos_embed"):
        table: Tensor = model.get_parameter(name)
        error = float((table.detach().cpu() - sincos(table.shape[-1], grid)).abs().max())
        if not error <= TABLE_ERROR:
            raise _refused(f"{name} is not the fixed table of positions (difference {error:.2g})")


def _refused(why: str) -> PolicyError:
    return PolicyError("incoming model", why, "refused; ask the coordinator")
