"""The one training loop. Everything random depends on (seed, global step), so a run can be cut anywhere and go on.

Steps 0..a and then a..b with the kept optimizer state give the bits of 0..b in one go; so does `kill -9` and the same
call again. That is what resuming, and a federation's rounds, rest on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from usfmae.core.checkpoint import tensors_id
from usfmae.core.config import TrainRecipe, TrainSettings
from usfmae.core.corpus.augment import plain
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.corpus.loader import Loader
from usfmae.core.corpus.sampling import generator
from usfmae.core.errors import UsageError
from usfmae.core.mae.device import autocast, device_of, micro_batch
from usfmae.core.mae.distributed import ranks, same_everywhere, strongest
from usfmae.core.mae.flops import peak_flops, training_flops
from usfmae.core.mae.lr_schedule import learning_rate
from usfmae.core.mae.model import MaskedAutoencoder
from usfmae.core.mae.optimizer_step import Stepper, Stop, never, normalise
from usfmae.core.mae.resume_state import ResumeState
from usfmae.core.mae.train_log import Journal
from usfmae.core.types import content_id


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


class Stopped(Exception):  # noqa: N818
    """A measurement was ended before its end, because the training is to stop."""


def train(  # noqa: PLR0913
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
    on_checkpoint: Callable[[int], None] | None = None,
    stop: Stop = never,
) -> TrainResult:
    """Train in place for `steps` optimizer steps from global step `start_step` of `total_steps`.

    `state` keeps weights and optimizer: after an interruption the same call goes on where it was, and a later call
    with another `start_step` takes over the optimizer's moments. `on_checkpoint(step)` follows each checkpoint. To stop,
    `on_step` returns True after a step, or `stop` turns true, also within a step, which is then given up.
    Raises UsfmaeError where the loss is not finite, ResourceError where memory or the disk is full.
    """
    rank, world = ranks()
    if len(positions) == 0 or settings.batch_size < world:
        raise UsageError(f"{len(positions)} images, batch {settings.batch_size}, {world} processes", "too few", "")
    end, total = start_step + steps, total_steps or start_step + steps
    recipe = TrainRecipe.of(settings)
    stepper = Stepper(model, recipe)
    resume_state = ResumeState(
        state, call_id(model, corpus, recipe, positions, start_step, steps, total), start_step, settings
    )
    step = same_everywhere(resume_state.restore(model, stepper.optimizer), device_of(model))
    journal = Journal(log if rank == 0 else None, step)
    pace = Pace(model, settings, log is not None)
    loss, finished = journal.last_loss, True
    model.train()
    with resume_state:
        for batch, waited in Loader(corpus, positions, model.settings, settings, rank, world).batches(step, end):
            # One update, unless the training is to stop within it.
            began = time.perf_counter()
            rate = learning_rate(batch.step, total, recipe)
            updated = stepper.step(batch, rate, stop)
            if updated is None:
                resume_state.save(model, stepper.optimizer, step, corpus.fingerprint)
                finished = False
                break
            (loss, norm), step = updated, batch.step + 1
            record = pace.record(step, loss, rate, norm, time.perf_counter() - began, waited)
            journal.write(record)

            # All processes stop, or write a checkpoint, after the same step.
            wish = 2 if (on_step and on_step(record)) or stop() else int(resume_state.due(step) or step == end)
            wish = strongest(wish, device_of(model))
            finished = wish < 2
            if wish:
                resume_state.save(model, stepper.optimizer, step, corpus.fingerprint)
            if wish == 1 and on_checkpoint:
                on_checkpoint(step)
            if not finished:
                break
    seconds = pace.seconds
    speed = (step - resume_state.restored) * settings.batch_size / seconds
    return TrainResult(step, step - start_step, loss, seconds, speed, pace.waited / seconds, finished)


class Pace:
    """How fast a call of `train` goes."""

    def __init__(self, model: MaskedAutoencoder, settings: TrainSettings, with_mfu: bool) -> None:
        self.flops = training_flops(model.settings, settings.mask_ratio)
        peak = peak_flops(str(device_of(model)), settings.precision) if with_mfu else None
        self.peak = peak and peak * ranks()[1]
        # The clock starts last: measuring a CPU's peak takes longer than a short run.
        self.batch_size, self.began, self.waited = settings.batch_size, time.perf_counter(), 0.0

    def record(self, step: int, loss: float, rate: float, norm: float, worked: float, waited: float) -> StepRecord:
        """The log's line of a step that worked and waited for so many seconds."""
        self.waited += waited
        seconds = worked + waited
        speed = self.batch_size / seconds
        mfu = speed * self.flops / self.peak if self.peak else None
        return StepRecord(step, loss, rate, norm, speed, mfu, waited / seconds, seconds)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began


@torch.no_grad()
def evaluate(
    model: MaskedAutoencoder, corpus: Corpus, positions: Positions, settings: TrainSettings, stop: Stop = never
) -> float:
    """Mean masked loss over `positions`, without augmentation; an image's mask depends on its id alone.

    Raises Stopped where `stop` turns true before the end.
    """
    device, was_training = device_of(model), model.training
    total = 0.0
    model.eval()
    try:
        for rows in chunks(positions, micro_batch(settings, device)):
            if stop():
                raise Stopped
            pixels = plain(corpus.fetch(rows).pixels, model.settings.image_size)
            noise = torch.from_numpy(fixed_noise([corpus.ids[p] for p in rows], model)).to(device)
            with autocast(device, settings.precision):
                loss = model(normalise(pixels, settings, device), noise, full=False)[0]
            total += float(loss) * len(rows)
    finally:
        model.train(was_training)
    return total / max(1, len(positions))


@torch.no_grad()
def target_variance(model: MaskedAutoencoder, corpus: Corpus, positions: Positions, settings: TrainSettings) -> float:
    """Variance of what is to be predicted about each channel's mean: the masked loss of the best constant."""
    count, mean, square = 0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    device = device_of(model)
    for rows in chunks(positions, micro_batch(settings, device)):
        images = normalise(plain(corpus.fetch(rows).pixels, model.settings.image_size), settings, device)
        target = model.target(model.patchify(images)).double().unflatten(-1, (-1, 3)).cpu()  # (B, L, P / 3, 3)
        mean, square = mean + target.mean((1, 2)).sum(0), square + target.square().mean((1, 2)).sum(0)
        count += len(rows)
    return float((square / count - (mean / count) ** 2).mean())


def fixed_noise(ids: list[str], model: MaskedAutoencoder) -> np.ndarray:
    """Mask noise (B, L) that depends on the ids alone."""
    patches = model.pos_embed.shape[1] - 1
    return np.stack([generator(int(content_id(id_)[:15], 16)).random(patches, dtype=np.float32) for id_ in ids])


def chunks(positions: Positions, size: int) -> Iterator[Positions]:
    return (positions[start : start + size] for start in range(0, len(positions), size))


def call_id(  # noqa: PLR0913
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
