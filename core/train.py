"""The one training loop. Everything random depends on (seed, global step), so a run can be cut anywhere and go on.

Steps 0..a and then a..b with the kept optimizer state give the bits of 0..b in one go; so does `kill -9` and the same
call again. That is what resuming, and a federation's rounds, rest on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from usfmae.core.checkpoint import DECODER, tensors_id
from usfmae.core.config import TrainSettings
from usfmae.core.continual.schedule import learning_rate
from usfmae.core.corpus.augment import plain
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.corpus.loader import Loader, Prepared
from usfmae.core.corpus.sampling import generator
from usfmae.core.device import autocast
from usfmae.core.errors import ResourceError, UsageError, UsfmaeError
from usfmae.core.flops import peak_flops, training_flops
from usfmae.core.flow import Pixels, content_id
from usfmae.core.journal import Journal
from usfmae.core.model import MaskedAutoencoder
from usfmae.core.state import State

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepRecord:
    """One line of the log: what an optimizer step did."""

    step: int  # global step after this update
    loss: float  # masked loss, mean over the global batch
    lr: float
    grad_norm: float  # before clipping
    images_per_second: float
    mfu: float | None  # share of the device's peak, None where the peak is unknown
    data_wait: float  # share of the step spent waiting for data
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """What a call of `train` did; the model holds the weights."""

    step: int  # global step reached
    steps: int  # optimizer steps of this call, those before an interruption included
    loss: float  # masked loss of the last step
    seconds: float
    images_per_second: float
    data_wait: float  # share of the time
    finished: bool  # False where `on_step` asked to stop


def train(
    model: MaskedAutoencoder,
    corpus: Corpus,
    settings: TrainSettings,
    *,
    positions: Positions,
    steps: int,
    start_step: int = 0,
    total_steps: int | None = None,
    state: Path | None = None,
    log: Path | None = None,
    on_step: Callable[[StepRecord], bool | None] | None = None,
) -> TrainResult:
    """Train in place for `steps` optimizer steps from global step `start_step` of `total_steps`.

    `state` keeps weights and optimizer: after an interruption the same call goes on where it was, and a later call
    with another `start_step` takes over the optimizer's moments. `on_step` may return True to stop after this step.
    Raises UsfmaeError where the loss is not finite, ResourceError where memory or the disk is full.
    """
    rank, world = ranks()
    if len(positions) == 0 or settings.batch_size < world:
        raise UsageError(f"{len(positions)} images, batch {settings.batch_size}, {world} processes", "too few", "")
    stop, total = start_step + steps, total_steps or start_step + steps
    optimizer = adamw(model, settings)
    anchor = anchored(model) if settings.proximal else []
    kept = State(state, call_id(model, corpus, settings, positions, start_step, steps, total), start_step, settings)
    step = kept.restore(model, optimizer)
    journal = Journal(log if rank == 0 else None, step)
    runner = parallel(compiled(model) if settings.compile else model, world)
    loader = Loader(corpus, positions, model.settings, settings, rank, world)
    flops = training_flops(model.settings, settings.mask_ratio)
    peak = peak_flops(device_of(model).type, settings.precision) if log else None
    record, began, waits, finished = None, time.perf_counter(), 0.0, True
    model.train()
    for batch, waited in loader.batches(step, stop):
        clock = time.perf_counter() - waited
        rate = learning_rate(batch.step, total, settings)
        loss, norm = update(model, runner, optimizer, batch, rate, settings, loader, anchor)
        step, taken = batch.step + 1, time.perf_counter() - clock
        speed = settings.batch_size / taken
        mfu = speed * flops / (peak * world) if peak else None
        record = StepRecord(step, loss, rate, norm, speed, mfu, waited / taken, taken)
        waits += waited
        journal.write(record)
        finished = not anyone(bool(on_step and on_step(record)), device_of(model))
        if step % settings.checkpoint_steps == 0 or step == stop or not finished:
            if rank == 0:
                kept.save(model, optimizer, step, corpus.fingerprint)
            if world > 1:
                dist.barrier()
        if not finished:
            break
    seconds = time.perf_counter() - began
    loss = record.loss if record else journal.last_loss
    speed = (step - kept.restored) * settings.batch_size / seconds
    return TrainResult(step, step - start_step, loss, seconds, speed, waits / seconds, finished)


def adamw(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """The optimizer over every trained tensor."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        trained, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )


def update(
    model: MaskedAutoencoder,
    runner: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Prepared,
    rate: float,
    settings: TrainSettings,
    loader: Loader,
    anchor: Sequence[tuple[Tensor, Tensor]] = (),
) -> tuple[float, float]:
    """One optimizer step; returns the global batch's loss and gradient norm. The weights stay untouched on an error.

    `anchor`: from `anchored`, what `proximal` pulls towards.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    try:
        loss = backward(runner, batch, settings, device_of(model))
        pull(anchor, settings.proximal)
        norm = nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], settings.clip)
        values = torch.stack([loss, norm]).tolist()
        if not all(map(math.isfinite, values)):
            images = ", ".join(loader.corpus.ids[p][:12] for p in loader.sampler.batch(batch.step)[:4])
            raise UsfmaeError(
                f"step {batch.step + 1}: loss {values[0]}, gradient norm {values[1]}",
                f"not finite, in the batch of images {images}, ...",
                "the last checkpoint is kept; lower train.lr or train.clip, or look at these images",
            )
        optimizer.step()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        size = min(settings.micro_batch, len(batch.pixels))
        smaller = f"try --set train.micro_batch={size // 2}: same result, less memory"
        raise ResourceError(
            f"memory, with {size} images at a time", "is full", smaller if size > 1 else "take a smaller model.*"
        ) from None
    optimizer.zero_grad(set_to_none=True)
    return values[0], values[1]


def backward(runner: nn.Module, batch: Prepared, settings: TrainSettings, device: torch.device) -> Tensor:
    """Gradients of the global batch's mean loss, a micro-batch at a time; returns that loss."""
    world = ranks()[1]
    total = torch.zeros((), device=device)
    starts = range(0, len(batch.pixels), settings.micro_batch)
    # One autocast region for the whole step: each weight is cast to bf16 once, not once a micro-batch.
    with autocast(device, settings.precision):
        for start in starts:
            rows = slice(start, start + settings.micro_batch)
            images = normalise(batch.pixels[rows], settings, device)
            noise = torch.from_numpy(batch.noise[rows]).to(device, non_blocking=True)
            last = start == starts[-1]
            with contextlib.nullcontext() if last or world == 1 else runner.no_sync():  # type: ignore[operator]
                loss = runner(images, noise, full=False)[0] * (len(images) * world / settings.batch_size)
                with torch.autocast(device.type, enabled=False):
                    loss.backward()
            total += loss.detach()
    if world > 1:
        dist.all_reduce(total)
    return total / world


def anchored(model: MaskedAutoencoder) -> list[tuple[Tensor, Tensor]]:
    """Each trained tensor of the encoder with a copy of its value now; a site's decoder is its own affair."""
    named = ((n, p) for n, p in model.named_parameters() if p.requires_grad and not n.startswith(DECODER))
    return [(parameter, parameter.detach().clone()) for _, parameter in named]


@torch.no_grad()
def pull(anchor: Sequence[tuple[Tensor, Tensor]], proximal: float) -> None:
    """Add the gradient of proximal / 2 * |w - anchor|^2, the term of FedProx (Li et al. 2020, arXiv:1812.06127)."""
    for parameter, start in anchor:
        assert parameter.grad is not None
        parameter.grad.add_(parameter - start, alpha=proximal)


@torch.no_grad()
def evaluate(model: MaskedAutoencoder, corpus: Corpus, positions: Positions, settings: TrainSettings) -> float:
    """Mean masked loss over `positions`, without augmentation; an image's mask depends on its id alone."""
    device, was_training = device_of(model), model.training
    total = 0.0
    model.eval()
    for rows in chunks(positions, settings.micro_batch):
        pixels = plain(corpus.fetch(rows).pixels, model.settings.image_size)
        noise = torch.from_numpy(fixed_noise([corpus.ids[p] for p in rows], model)).to(device)
        with autocast(device, settings.precision):
            loss = model(normalise(pixels, settings, device), noise, full=False)[0]
        total += float(loss) * len(rows)
    model.train(was_training)
    return total / max(1, len(positions))


def pixel_variance(corpus: Corpus, positions: Positions, settings: TrainSettings, size: int) -> float:
    """Variance of the normalised pixels about each channel's mean: the masked loss of the best constant."""
    cpu = torch.device("cpu")
    count, mean, square = 0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for rows in chunks(positions, 64):
        images = normalise(plain(corpus.fetch(rows).pixels, size), settings, cpu).double()
        mean, square = mean + images.mean((2, 3)).sum(0), square + images.square().mean((2, 3)).sum(0)
        count += len(rows)
    return float((square / count - (mean / count) ** 2).mean())


def fixed_noise(ids: list[str], model: MaskedAutoencoder) -> np.ndarray:
    """Mask noise (B, L) that depends on the ids alone."""
    patches = model.pos_embed.shape[1] - 1
    return np.stack([generator(int(content_id(id_)[:15], 16)).random(patches, dtype=np.float32) for id_ in ids])


def chunks(positions: Positions, size: int) -> Iterator[Positions]:
    return (positions[start : start + size] for start in range(0, len(positions), size))


def normalise(pixels: Pixels, settings: TrainSettings, device: torch.device) -> Tensor:
    """(B, S, S, C) uint8 -> (B, 3, S, S) float on the device; gray becomes three equal channels first."""
    images = torch.from_numpy(np.ascontiguousarray(pixels)).to(device, non_blocking=True)
    images = images.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).float()
    return images.div_(255).sub_(_channels(settings.mean, device)).div_(_channels(settings.std, device))


@lru_cache(maxsize=8)  # a copy to a GPU waits for it
def _channels(values: tuple[float, float, float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(3, 1, 1)


def compiled(model: nn.Module) -> nn.Module:
    module: nn.Module = torch.compile(model)  # type: ignore[assignment]
    return module


def parallel(model: nn.Module, world: int) -> nn.Module:
    """The model itself, or wrapped so that gradients are averaged over the processes torchrun started."""
    return DistributedDataParallel(model, gradient_as_bucket_view=True) if world > 1 else model


def anyone(flag: bool, device: torch.device) -> bool:
    """True in every process as soon as it is in one, so that all of them stop after the same step."""
    if ranks()[1] == 1:
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags > 0)


def ranks() -> tuple[int, int]:
    """(this process, all processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def call_id(
    model: MaskedAutoencoder,
    corpus: Corpus,
    settings: TrainSettings,
    positions: Positions,
    start: int,
    steps: int,
    total: int,
) -> str:
    """Equal for two calls of `train` that must give the same weights."""
    return content_id(
        tensors_id(model.state_dict()),
        corpus.fingerprint,
        positions.tobytes(),
        settings.model_dump_json(),
        model.settings.model_dump_json(),
        f"{start} {steps} {total}",
    )
