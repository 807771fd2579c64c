"""One fine-tuning: encoder and linear head on one split, stopped by the validation part.

AdamW, linear warm-up and cosine, cross-entropy on pooled features. The test part is read once, at the end. The head may
normalise its input over the batch and learn at a rate of its own; blocks may learn the slower the deeper they lie.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from usfmae.core.bench.encoders.base import Encoder
from usfmae.core.bench.features import device
from usfmae.core.bench.metrics import Predictions, measures
from usfmae.core.bench.tasks.base import BenchmarkTask, Positions, Split
from usfmae.core.config import AugmentSettings
from usfmae.core.config.bench import FinetuneSettings
from usfmae.core.corpus.augment import augment, draws, plain
from usfmae.core.errors import ResourceError
from usfmae.core.mae.device import autocast, out_of_memory
from usfmae.core.types import Pixels

Floats = NDArray[np.float64]
TEST_BATCH = 64
RAN_AWAY = 1e9
CLIP = 1.0
BLOCK = re.compile(r"\bblocks\.(\d+)\.")
STEM = re.compile(r"patch_embed|pos_embed|cls_token|conv_stem|\bbn1\b")


@dataclass(frozen=True)
class FitChoice:
    """One point of the grid."""

    lr: float
    weight_decay: float
    batch: int


@dataclass(frozen=True)
class FitRun:
    """One training: what it was, how it went, and its probabilities for the test part (T, K)."""

    split: str
    choice: FitChoice
    seed: int
    validation: float  # best balanced accuracy on the validation part; -1 where the loss ran away
    validation_loss: float  # cross-entropy there, at that epoch; RAN_AWAY likewise
    epochs: int
    best_epoch: int
    seconds: float
    probabilities: Floats
    weights: dict[str, Tensor] | None = None  # of encoder and head at the best epoch; not kept with the run


@dataclass(frozen=True)
class FitData:
    """The images of a task and one of its splits."""

    task: BenchmarkTask
    split: Split
    pixels: Pixels  # (N, S, S, C) uint8


class Training:
    """A training that is about to begin. `encoder` is trained in place."""

    def __init__(
        self, data: FitData, encoder: Encoder, settings: FinetuneSettings, choice: FitChoice, seed: int
    ) -> None:
        self.task, self.split, self.pixels, self.encoder = data.task, data.split, data.pixels, encoder
        self.settings, self.choice, self.seed = settings, choice, seed
        torch.manual_seed(seed)
        self.device = device()
        self.model = nn.Sequential(encoder.module.train(), head(encoder, len(data.task.classes), settings)).to(
            self.device
        )
        groups = parameter_groups(self.model, settings, choice.lr)
        self.optimizer = torch.optim.AdamW(groups, lr=choice.lr, weight_decay=choice.weight_decay)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]

    def run(self) -> FitRun:
        """Train; the weights of the best validation epoch give the test probabilities.

        Raises ResourceError where memory is full.
        """
        try:
            return self._run()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            full = f"memory, with batches of {self.choice.batch}"
            raise ResourceError(full, "is full", "set bench.finetune.batch_sizes lower") from None

    def _run(self) -> FitRun:
        began = time.perf_counter()
        best, best_epoch, epoch, best_weights = (-1.0, -RAN_AWAY), 0, 0, None
        while epoch < self.settings.epochs and epoch - best_epoch < self.settings.patience:
            epoch += 1
            if not math.isfinite(self._epoch(epoch)):
                break
            worth_now = worth(self.task, self.split.validation, self.probabilities(self.split.validation))
            if worth_now > best:
                best, best_epoch = worth_now, epoch
                best_weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        if best_weights is not None:
            self.model.load_state_dict(best_weights)
            probabilities = self.probabilities(self.split.test)
        else:  # the loss ran away before the first validation: the run says nothing
            probabilities = np.full((len(self.split.test), len(self.task.classes)), 1 / len(self.task.classes))
        seconds = time.perf_counter() - began
        weights = {n: t.cpu() for n, t in best_weights.items()} if best_weights is not None else None
        return FitRun(
            *(self.split.name, self.choice, self.seed, best[0], -best[1], epoch, best_epoch, seconds, probabilities),
            weights,
        )

    def _epoch(self, epoch: int) -> float:
        """One pass over the training part; the last batch's loss."""
        batches = len(self._bounds())
        self.model.train()
        loss = torch.zeros(())
        for step, (images, labels) in enumerate(self._batches(epoch), start=(epoch - 1) * batches):
            share = rate(step, self.settings.epochs * batches, self.settings.warmup)
            for group, peak in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = peak * share
            loss = F.cross_entropy(self._logits(images), labels.to(self.device))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
        return float(loss.detach())

    def _logits(self, images: Tensor) -> Tensor:
        """(B, S, S, C) uint8 -> (B, K) fp32."""
        with autocast(self.device, self.settings.precision):
            logits: Tensor = self.model(self.encoder.prepare(images.to(self.device)))
        return logits.float()

    def _bounds(self) -> list[tuple[int, int]]:
        """Begin and end of each batch. One image left over joins the last batch: batch norm needs two."""
        images, size = len(self.split.train), self.choice.batch
        starts = list(range(0, images, size))
        if self.settings.norm == "batch" and images % size == 1 and len(starts) > 1:
            starts.pop()
        return list(zip(starts, [*starts[1:], images], strict=True))

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, augmented batches of one epoch; the next is made while the model works on this one."""
        settings = self.settings
        order = np.random.default_rng((self.seed, epoch)).permutation(self.split.train)
        augmentation = AugmentSettings(
            rotation=settings.rotation,
            two_sided=settings.two_sided,
            flips=settings.flips,
            zoom_min=settings.zoom_min,
            zoom_max=settings.zoom_max,
        )

        def make(start: int, end: int) -> tuple[Tensor, Tensor]:
            rows = order[start:end]
            chosen = draws(len(rows), self.pixels.shape[1], augmentation, self.seed, epoch * 1_000_003 + start)
            images = augment(self.pixels[rows], chosen, self.encoder.size, augmentation)
            return torch.from_numpy(images), torch.from_numpy(self.task.labels[rows])

        with ThreadPoolExecutor(1) as pool:
            first, *later = self._bounds()
            following = pool.submit(make, *first)
            for bounds in later:
                batch = following.result()
                following = pool.submit(make, *bounds)
                yield batch
            yield following.result()

    @torch.inference_mode()
    def probabilities(self, positions: Positions) -> Floats:
        """(T, K) for the images at `positions`, without augmentation."""
        self.model.eval()
        parts = []
        for start in range(0, len(positions), TEST_BATCH):
            rows = plain(self.pixels[positions[start : start + TEST_BATCH]], self.encoder.size)
            parts.append(self._logits(torch.from_numpy(rows)).softmax(dim=1).double().cpu().numpy())
        return np.concatenate(parts)


def head(encoder: Encoder, classes: int, settings: FinetuneSettings) -> nn.Module:
    """Features (B, D) -> logits (B, K)."""
    linear = nn.Linear(encoder.width, classes)
    if settings.norm == "none":
        return linear
    return nn.Sequential(nn.BatchNorm1d(encoder.width, affine=False, eps=1e-6), linear)


def parameter_groups(model: nn.Sequential, settings: FinetuneSettings, lr: float) -> list[dict[str, Any]]:
    """The trained tensors with their peak rates: one group where all are equal, else one for each depth and the head."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if settings.head_lr is None and settings.layer_decay == 1:
        return [{"params": [p for _, p in trained], "lr": lr}]
    names = [name for name, _ in trained]
    above = 2 + max((int(m[1]) for n in names if (m := BLOCK.search(n))), default=-1)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in trained:
        own = lr * settings.layer_decay ** (above - _depth(name, above))
        if name.startswith("1."):  # the head
            own = settings.head_lr or lr
        groups.setdefault(own, []).append(parameter)
    return [{"params": parameters, "lr": own} for own, parameters in groups.items()]


def _depth(name: str, above: int) -> int:
    """0 for patch embedding and positions, i + 1 for block i, `above` for what follows the blocks."""
    if block := BLOCK.search(name):
        return int(block[1]) + 1
    return 0 if STEM.search(name) else above


def worth(task: BenchmarkTask, positions: Positions, probabilities: Floats) -> tuple[float, float]:
    """Balanced accuracy, then the smaller cross-entropy: while a rare class is never named yet, only that moves."""
    labels = task.labels[positions]
    predictions = Predictions(labels, probabilities, ("",) * len(probabilities), (), ())
    likelihood = np.log(np.maximum(probabilities[np.arange(len(probabilities)), labels], 1e-12)).mean()
    return float(measures(predictions)["balanced_accuracy"]), float(likelihood)


def rate(step: int, total: int, warmup: float) -> float:
    """Linear warm-up, then half a cosine to 0."""
    warm = warmup * total
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, total - warm)))
