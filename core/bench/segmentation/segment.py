"""A light head on an encoder's patch tokens: frozen or fine-tuned, chosen by the validation part, scored once.

B images, S side, D features of a patch, h = w patches a side. Dice = 2 |A and B| / (|A| + |B|), IoU = |A and B| /
|A or B|, of each image; both are 1 where neither the mask nor the prediction marks anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from usfmae.core.bench.encoders.base import Encoder
from usfmae.core.bench.encoders.masked import MaskedEncoder
from usfmae.core.bench.encoders.timm_models import TimmEncoder
from usfmae.core.bench.features import Aspect, device
from usfmae.core.bench.metrics import resampled
from usfmae.core.bench.segmentation.tasks import SegmentationTask, read_mask
from usfmae.core.bench.tasks.base import Positions, Split, picture
from usfmae.core.config.bench import SegmentSettings
from usfmae.core.corpus.shard import padded, square
from usfmae.core.errors import UsageError
from usfmae.core.types import CleanImage, Pixels

HIDDEN = 64  # channels of the head
PASS = 16  # images a forward pass without gradients


@dataclass(frozen=True)
class Overlap:
    """What a test image came to."""

    id: str
    split: str
    group: str
    dice: float
    iou: float


def squares_of(task: SegmentationTask, size: int, aspect: Aspect) -> tuple[Pixels, NDArray[np.bool_]]:
    """Images (N, S, S, 3) uint8 and masks (N, S, S) bool, made square alike. Raises SourceError."""
    images, masks = [], []
    for example, entry in zip(task.images.examples, task.masks, strict=True):
        pixels = picture(example)
        mask = read_mask(entry, pixels.shape[:2], example.id).astype(np.uint8)
        clean = CleanImage(pixels, np.zeros(pixels.shape[:2], bool))
        packed = square(clean, size, "", aspect=aspect).pixels
        images.append(np.broadcast_to(packed if packed.ndim == 3 else packed[..., None], (size, size, 3)))
        wide = padded(mask) if aspect == "keep" else mask
        masks.append(cv2.resize(wide, (size, size), interpolation=cv2.INTER_NEAREST) > 0)
    return np.stack(images), np.stack(masks)


def dense(encoder: Encoder, images: Tensor) -> Tensor:
    """(B, 3, S, S) normalised -> (B, D, h, w). UsageError for a model without a map of features."""
    module = encoder.module
    tokens: Tensor
    if isinstance(module, MaskedEncoder):
        tokens = module.autoencoder.features(images)[:, 1:]
    elif isinstance(module, TimmEncoder):
        tokens = module.model.forward_features(images)  # type: ignore[operator]
        if tokens.ndim == 4:
            return tokens
        tokens = tokens[:, module.model.num_prefix_tokens :]
    else:
        raise UsageError(f"model {encoder.name}", "has no features of places", "give a checkpoint or timm:NAME")
    side = round(tokens.shape[1] ** 0.5)
    places: Tensor = tokens.transpose(1, 2).unflatten(2, (side, side))
    return places


class Head(nn.Module):
    """(B, D, h, w) -> logits (B, S, S): two small convolutions at twice the patch grid."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.before = nn.Sequential(nn.BatchNorm2d(width, affine=False), nn.Conv2d(width, HIDDEN, 1), nn.GELU())
        self.after = nn.Sequential(nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1), nn.GELU(), nn.Conv2d(HIDDEN, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        wide = F.interpolate(self.before(features), scale_factor=2, mode="bilinear", align_corners=False)
        logits = F.interpolate(self.after(wide), (self.size, self.size), mode="bilinear", align_corners=False)
        return logits[:, 0]


class Segmentation:
    """The training of one head, and of the encoder where it is not frozen, on one split."""

    def __init__(self, encoder: Encoder, pixels: Pixels, masks: NDArray[np.bool_], settings: SegmentSettings) -> None:
        self.encoder, self.pixels, self.masks, self.settings = encoder, pixels, masks, settings
        self.device = device()
        encoder.module.to(self.device)
        self.frozen_features = None if settings.finetune else self._all_features()
        self.width = encoder_width(encoder, self.device)

    @torch.no_grad()
    def _all_features(self) -> Tensor:
        """(N, D, h, w) half precision, in memory: a frozen encoder is run once."""
        self.encoder.module.eval()
        rows = range(0, len(self.pixels), PASS)
        return torch.cat([self._features(np.arange(a, min(a + PASS, len(self.pixels)))).half().cpu() for a in rows])

    def _features(self, rows: Positions, flip: bool = False) -> Tensor:
        images = torch.from_numpy(np.ascontiguousarray(self.pixels[rows])).to(self.device)
        prepared = self.encoder.prepare(images)
        return dense(self.encoder, prepared.flip(-1) if flip else prepared)

    def run(self, split: Split) -> tuple[Head, float]:
        """Train on a split: the head (and encoder) of the best validation epoch, and its Dice there."""
        torch.manual_seed(self.settings.seed)
        head = Head(self.width, self.pixels.shape[1]).to(self.device)
        parameters: list[dict[str, Any]] = [{"params": head.parameters(), "lr": self.settings.lr}]
        if self.settings.finetune:
            parameters.append({"params": self.encoder.module.parameters(), "lr": self.settings.encoder_lr})
        optimizer = torch.optim.AdamW(parameters, weight_decay=0.01)
        best, weights = -1.0, None
        for epoch in range(self.settings.epochs):
            self._epoch(head, optimizer, split.train, epoch)
            dice = float(np.mean([d for d, _ in self.overlaps(head, split.validation)]))
            if dice > best:
                best, weights = dice, self._state(head)
        assert weights is not None
        self._load(head, weights)
        return head, best

    def _state(self, head: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        copy = lambda module: {n: t.detach().clone() for n, t in module.state_dict().items()}  # noqa: E731
        return copy(head), copy(self.encoder.module) if self.settings.finetune else {}

    def _load(self, head: nn.Module, weights: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
        head.load_state_dict(weights[0])
        if weights[1]:
            self.encoder.module.load_state_dict(weights[1])

    def _epoch(self, head: Head, optimizer: torch.optim.Optimizer, train: Positions, epoch: int) -> None:
        head.train()
        self.encoder.module.train(self.settings.finetune)
        order = np.random.default_rng((self.settings.seed, epoch)).permutation(train)
        for start in range(0, len(order), self.settings.batch_size):
            rows = order[start : start + self.settings.batch_size]
            # Left and right are alike in ultrasound; a frozen encoder's features cannot be turned so.
            flip = self.settings.finetune and bool((epoch + start) % 2)
            target = torch.from_numpy(self.masks[rows].astype(np.float32)).to(self.device)
            logits = head(self._batch(rows, flip))
            loss = overlap_loss(logits, target.flip(-1) if flip else target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def _batch(self, rows: Positions, flip: bool = False) -> Tensor:
        if self.frozen_features is not None:
            return self.frozen_features[torch.from_numpy(rows)].float().to(self.device)
        return self._features(rows, flip)

    @torch.no_grad()
    def overlaps(self, head: Head, positions: Positions) -> Iterator[tuple[float, float]]:
        """(Dice, IoU) of each image."""
        head.eval()
        self.encoder.module.eval()
        for start in range(0, len(positions), PASS):
            rows = positions[start : start + PASS]
            predicted = (head(self._batch(rows)) > 0).cpu().numpy()
            yield from (overlap(a, b) for a, b in zip(predicted, self.masks[rows], strict=True))


def encoder_width(encoder: Encoder, where: torch.device) -> int:
    """Channels of the map of features."""
    encoder.module.eval()
    with torch.no_grad():
        return int(dense(encoder, torch.zeros(1, 3, encoder.size, encoder.size, device=where)).shape[1])


def overlap_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each pixel plus one minus the soft Dice of each image; (B, S, S) both."""
    probability = logits.sigmoid()
    both, sizes = (probability * target).sum((1, 2)), probability.sum((1, 2)) + target.sum((1, 2))
    return F.binary_cross_entropy_with_logits(logits, target) + (1 - (2 * both + 1) / (sizes + 1)).mean()


def overlap(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[float, float]:
    """(Dice, IoU) of two masks."""
    both, either = int((predicted & truth).sum()), int((predicted | truth).sum())
    if not either:
        return 1.0, 1.0
    return 2 * both / int(predicted.sum() + truth.sum()), both / either


def segment(
    task: SegmentationTask,
    build: Callable[[], Encoder],
    settings: SegmentSettings,
    aspect: Aspect,
    on_split: Callable[[str, float], None] | None = None,
) -> list[Overlap]:
    """Every split's test images, each once. `build` gives a fresh encoder; `on_split` hears of the validation Dice."""
    encoder = build()
    pixels, masks = squares_of(task, encoder.size, aspect)
    work = Segmentation(encoder, pixels, masks, settings)
    overlaps: list[Overlap] = []
    for split in task.images.splits:
        if settings.finetune:  # each split begins with the encoder as it was
            work = Segmentation(build(), pixels, masks, settings)
        head, validation = work.run(split)
        examples = [task.images.examples[i] for i in split.test]
        scores = work.overlaps(head, split.test)
        overlaps += [Overlap(e.id, split.name, e.group, *s) for e, s in zip(examples, scores, strict=True)]
        if on_split:
            on_split(split.name, validation)
    return overlaps


def scores(overlaps: list[Overlap], resamples: int, seed: int) -> dict[str, dict[str, float]]:
    """Mean Dice and IoU over images with 95 % intervals over patients."""
    weights = resampled([o.group for o in overlaps], resamples, seed)  # (R, N)
    result = {}
    for name in ("dice", "iou"):
        values = np.array([getattr(o, name) for o in overlaps])
        drawn = (weights @ values) / weights.sum(axis=1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        result[name] = {"value": float(values.mean()), "low": float(low), "high": float(high)}
    return result
