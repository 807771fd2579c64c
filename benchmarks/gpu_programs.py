"""The programs that `gpu.py` times: each gives one optimizer step of a batch of a size. Rivals as their users run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from usfmae.core.config import ModelSettings, TrainRecipe
from usfmae.core.corpus.augment import affine, draws
from usfmae.core.mae.device_batches import DeviceBatch
from usfmae.core.mae.model import fresh
from usfmae.core.mae.optimizer_step import Stepper

Step = Callable[[], object]
CORPUS = 4096  # images that lie in the device's memory


@dataclass(frozen=True)
class Case:
    """What a program is to run."""

    model: ModelSettings
    device: str
    batch: int
    mask_ratio: float
    compiled: bool

    @property
    def recipe(self) -> TrainRecipe:
        return TrainRecipe(
            batch_size=self.batch, micro_batch=self.batch, mask_ratio=self.mask_ratio, compile=self.compiled
        )


def resident(case: Case) -> Iterator[DeviceBatch]:
    """Batches as `train` gives them to a GPU, out of random pictures that lie there: gather, draws, matrices, noise."""
    size, recipe = case.model.image_size, case.recipe
    images = torch.randint(0, 256, (CORPUS, 1, size, size), dtype=torch.uint8, device=case.device)
    random, ids = np.random.default_rng(0), ("",) * case.batch
    step = 0
    while True:
        rows = torch.from_numpy(random.integers(0, CORPUS, case.batch)).to(case.device, non_blocking=True)
        matrices = np.stack([affine(d, size, size) for d in draws(case.batch, size, recipe.augment, 0, step)])
        noise = random.random((case.batch, (size // case.model.patch_size) ** 2), np.float32)
        yield DeviceBatch(
            step, images[rows], torch.from_numpy(matrices.astype(np.float32)).to(case.device, non_blocking=True),
            torch.from_numpy(noise).to(case.device, non_blocking=True), ids, size,
        )  # fmt: skip
        step += 1


def ours(case: Case) -> Step:
    """The product's step, augmentation included, with nothing read back."""
    stepper = Stepper(fresh(case.model, case.mask_ratio).to(case.device), case.recipe)
    if not case.compiled:
        stepper.runner = stepper.model
    batches = resident(case)
    return lambda: stepper.update(next(batches), 1e-4, wait=False)


def hugging_face(case: Case) -> Step:
    """transformers' ViTMAEForPreTraining under bf16 autocast with fused AdamW, on pictures that lie on the device."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    m = case.model
    config = ViTMAEConfig(  # type: ignore[call-arg]
        image_size=m.image_size, patch_size=m.patch_size, hidden_size=m.width, num_hidden_layers=m.depth,
        num_attention_heads=m.heads, intermediate_size=4 * m.width, decoder_hidden_size=m.decoder_width,
        decoder_num_hidden_layers=m.decoder_depth, decoder_num_attention_heads=m.decoder_heads,
        decoder_intermediate_size=4 * m.decoder_width, mask_ratio=case.mask_ratio, norm_pix_loss=False,
        layer_norm_eps=1e-6, attn_implementation="sdpa",
    )  # fmt: skip
    network = ViTMAEForPreTraining(config).to(case.device).train()
    return plain_loop(case, network, lambda run, images: run(images).loss)


def facebook(case: Case) -> Step:
    """facebookresearch/mae's model, rebuilt on timm's blocks (its sources are for non-commercial use)."""
    network = OnTimm(case).to(case.device)
    return plain_loop(case, network, lambda run, images: run(images))


def plain_loop(case: Case, network: nn.Module, loss_of: Callable[[Any, Tensor], Tensor]) -> Step:
    """Forward, backward, clip, AdamW, and the loss printed: the loop that everyone writes."""
    run = torch.compile(network) if case.compiled else network
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)
    side = case.model.image_size
    pixels = torch.randint(0, 256, (case.batch, 1, side, side), dtype=torch.uint8, device=case.device)

    def step() -> None:
        images = pixels.expand(-1, 3, -1, -1).float().div_(255).sub_(0.45).div_(0.225)
        with torch.autocast(case.device, torch.bfloat16):
            loss = loss_of(run, images)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


class OnTimm(nn.Module):
    """Encoder of visible patches, decoder of all, mean squared error of hidden ones."""

    def __init__(self, case: Case) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        m = case.model
        self.side, self.patch, self.mask_ratio = m.image_size // m.patch_size, m.patch_size, case.mask_ratio
        length = self.side**2
        self.embed = nn.Linear(3 * m.patch_size**2, m.width)
        self.cls, self.mask = nn.Parameter(torch.zeros(1, 1, m.width)), nn.Parameter(torch.zeros(1, 1, m.decoder_width))
        self.register_buffer("places", torch.randn(1, length + 1, m.width))
        self.register_buffer("decoder_places", torch.randn(1, length + 1, m.decoder_width))
        self.blocks = nn.ModuleList(Block(m.width, m.heads, 4, qkv_bias=True) for _ in range(m.depth))
        self.norm, self.bridge = nn.LayerNorm(m.width), nn.Linear(m.width, m.decoder_width)
        self.decoder_blocks = nn.ModuleList(
            Block(m.decoder_width, m.decoder_heads, 4, qkv_bias=True) for _ in range(m.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(m.decoder_width)
        self.predict = nn.Linear(m.decoder_width, 3 * m.patch_size**2)

    def forward(self, images: Tensor) -> Tensor:
        count, side, patch = len(images), self.side, self.patch
        patches = (
            images.reshape(count, 3, side, patch, side, patch).permute(0, 2, 4, 3, 5, 1).reshape(count, side**2, -1)
        )
        x = self.embed(patches) + self.places[:, 1:]  # type: ignore[index]
        # A random order: the first patches stay visible.
        length, seen = side**2, int(side**2 * (1 - self.mask_ratio))
        order = torch.rand(count, length, device=x.device).argsort(1)
        back = order.argsort(1)
        x = x.gather(1, order[:, :seen, None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([(self.cls + self.places[:, :1]).expand(count, -1, -1), x], 1)  # type: ignore[index]
        for block in self.blocks:
            x = block(x)
        # Mask tokens fill the gaps; all patches in their own places again.
        x = self.bridge(self.norm(x))
        whole = torch.cat([x[:, 1:], self.mask.expand(count, length - seen, -1).to(x.dtype)], 1)
        whole = whole.gather(1, back[..., None].expand(-1, -1, whole.shape[-1]))
        x = torch.cat([x[:, :1], whole], 1) + self.decoder_places
        for block in self.decoder_blocks:
            x = block(x)
        predicted = self.predict(self.decoder_norm(x))[:, 1:]
        hidden = (back >= seen).float()
        loss: Tensor = (((predicted - patches) ** 2).mean(-1) * hidden).sum() / hidden.sum()
        return loss


PROGRAMS: dict[str, Callable[[Case], Step]] = {"ours": ours, "hf": hugging_face, "facebook on timm": facebook}
