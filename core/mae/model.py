"""The masked autoencoder (He et al. 2022, arXiv 2111.06377), with the tensor names of facebookresearch/mae.

Three steps: hide patches at random, encode the visible ones, decode all and compare the hidden ones with the image.
B images, L patches, V visible and M = L - V masked, D encoder width, E decoder width, P values per patch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usfmae.core.config import ModelSettings
from usfmae.core.errors import CheckpointError
from usfmae.core.mae.device import attention


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, last: int | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), or the outputs of the `last` tokens only."""
        batch, count, width = x.shape
        q, k, v = self.qkv(x).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (B, H, N, d)
        if last is not None:
            q = q[:, :, -last:]
        mixed: Tensor = self.proj(attention(q, k, v).transpose(1, 2).reshape(batch, -1, width))
        return mixed


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return hidden


class Block(nn.Module):
    """Pre-norm transformer block (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, last: int | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, last, D) where only the last tokens are wanted."""
        queries = x if last is None else x[:, -last:]
        x = queries + self.attn(self.norm1(x), last)
        added: Tensor = self.mlp(self.norm2(x))
        return x + added


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, V, P) -> (B, V, D): the convolution as a product, so that hidden patches cost nothing."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (D, P), in the order of `patchify`
        return F.linear(patches, weight, self.proj.bias)


class MaskedAutoencoder(nn.Module):
    """`model(images, noise)` gives (loss, prediction, mask); `mask_ratio` of the patches are hidden.

    images: (B, 3, S, S), normalised. noise: (B, L), patches with the smallest values stay visible; drawn if None.
    norm_pix: each target patch is normalised by its own mean and variance.
    """

    def __init__(self, model: ModelSettings, mask_ratio: float = 0.25, norm_pix: bool = False) -> None:
        super().__init__()
        self.settings, self.mask_ratio, self.norm_pix = model, mask_ratio, norm_pix
        grid, width, narrow = model.image_size // model.patch_size, model.width, model.decoder_width

        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos(width, grid), requires_grad=False)  # (1, 1 + L, D)
        self.patch_embed = PatchEmbed(model.patch_size, width)
        self.blocks = nn.ModuleList(Block(width, model.heads) for _ in range(model.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

        self.mask_token = nn.Parameter(torch.zeros(1, 1, narrow))
        self.decoder_pos_embed = nn.Parameter(sincos(narrow, grid), requires_grad=False)  # (1, 1 + L, E)
        self.decoder_embed = nn.Linear(width, narrow)
        self.decoder_blocks = nn.ModuleList(Block(narrow, model.decoder_heads) for _ in range(model.decoder_depth))
        self.decoder_norm = nn.LayerNorm(narrow, eps=1e-6)
        self.decoder_pred = nn.Linear(narrow, 3 * model.patch_size**2)
        self._initialise()

    def forward(self, images: Tensor, noise: Tensor | None = None, full: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Mean squared error over masked patches, prediction (B, L, P), mask (B, L) with 1 where masked.

        With `full=False` the prediction holds the masked patches only, (B, M, P) in the order of their noise: the
        same loss and gradients for less work.
        """
        patches = self.patchify(images)  # (B, L, P)
        noise = torch.rand(patches.shape[:2], device=images.device) if noise is None else noise
        order = noise.argsort(dim=1)  # (B, L), visible patches first
        visible = int(order.shape[1] * (1 - self.mask_ratio))

        latent = self._encode(patches, order[:, :visible])  # (B, 1 + V, D)
        prediction: Tensor = self.decoder_pred(
            self._hidden_states(latent, order, full)
        )  # (B, L or M, P), in that order
        target = self.target(take(patches, order[:, visible:]))  # (B, M, P)
        loss = F.mse_loss(prediction[:, -target.shape[1] :].float(), target)

        restore = order.argsort(dim=1)
        mask = (restore >= visible).float()
        return loss, take(prediction, restore) if full else prediction, mask

    def features(self, images: Tensor) -> Tensor:
        """Encoder output for whole images: (B, 1 + L, D), the class token first."""
        patches = self.patchify(images)
        return self._encode(patches, torch.arange(patches.shape[1], device=images.device).expand(patches.shape[:2]))

    def patchify(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, L, P); within a patch row, column, then channel."""
        side = self.settings.patch_size
        batch, channels, height, width = images.shape
        grid = images.reshape(batch, channels, height // side, side, width // side, side)
        return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, side * side * channels)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, L, P) -> (B, 3, S, S)."""
        side, grid = self.settings.patch_size, self.settings.image_size // self.settings.patch_size
        pixels = patches.reshape(len(patches), grid, grid, side, side, 3).permute(0, 5, 1, 3, 2, 4)
        return pixels.reshape(len(patches), 3, grid * side, grid * side)

    def _encode(self, patches: Tensor, keep: Tensor) -> Tensor:
        """Patches (B, L, P) and the positions to see (B, V) -> (B, 1 + V, D)."""
        x = self.patch_embed(take(patches, keep)) + self.pos_embed[0, 1:][keep]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat([cls, x], dim=1)
        for block in self.blocks:
            x = block(x)
        latent: Tensor = self.norm(x)
        return latent

    def _hidden_states(self, latent: Tensor, order: Tensor, full: bool) -> Tensor:
        """Latent (B, 1 + V, D) -> decoder output (B, L or M, E) in the order of `order`.

        Attention does not mind the order, so nothing is moved back.
        """
        x = self.decoder_embed(latent)  # (B, 1 + V, E)
        masked = order.shape[1] + 1 - x.shape[1]
        x = torch.cat([x, self.mask_token.to(x.dtype).expand(x.shape[0], masked, -1)], dim=1)  # (B, 1 + L, E)
        place = torch.cat([order.new_zeros(order.shape[0], 1), order + 1], dim=1)
        x = x + self.decoder_pos_embed[0][place]
        for block in self.decoder_blocks[:-1]:
            x = block(x)
        x = self.decoder_blocks[-1](x, order.shape[1] if full else masked)
        hidden: Tensor = self.decoder_norm(x)
        return hidden

    def target(self, patches: Tensor) -> Tensor:
        """What is to be predicted for patches (..., P): they themselves, or normalised each by its own pixels."""
        if not self.norm_pix:
            return patches
        mean, variance = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()

    def _initialise(self) -> None:
        for module in self.modules():
            # The patch projection is a linear layer in spirit.
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                nn.init.zeros_(module.bias) if module.bias is not None else None
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)


def take(x: Tensor, positions: Tensor) -> Tensor:
    """(B, L, C), (B, K) -> (B, K, C)."""
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))


def sincos(width: int, grid: int) -> Tensor:
    """Fixed 2D sine-cosine position embedding (1, 1 + grid * grid, width), zeros for the class token."""
    frequencies = 10000.0 ** -(np.arange(width // 4) / (width / 4))
    row, column = np.divmod(np.arange(grid * grid), grid)
    halves = []
    for coordinate in (column, row):  # facebookresearch puts the column in the first half
        angles = np.outer(coordinate, frequencies)
        halves += [np.sin(angles), np.cos(angles)]
    table = np.concatenate([np.zeros((1, width)), np.concatenate(halves, axis=1)])
    return torch.from_numpy(table).float()[None]


def fresh(model: ModelSettings, mask_ratio: float = 0.25, norm_pix: bool = False, seed: int = 42) -> MaskedAutoencoder:
    """A model with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskedAutoencoder(model, mask_ratio, norm_pix)


def load_tensors(model: MaskedAutoencoder, tensors: Mapping[str, Tensor], origin: str = "checkpoint") -> None:
    """Copy weights in by name. CheckpointError names the first tensor that is missing, unknown or of another shape."""
    own = model.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in tensors or name not in own:
            state = "is missing" if name not in tensors else "has no place in this model"
            raise CheckpointError(f"{origin}: tensor {name}", state, "give the architecture it was trained with")
        if own[name].shape != tensors[name].shape:
            shape, own_shape = tuple(tensors[name].shape), tuple(own[name].shape)
            raise CheckpointError(
                f"{origin}: tensor {name}", f"has shape {shape}, this model needs {own_shape}", "set model.* to match"
            )
    model.load_state_dict(dict(tensors))
