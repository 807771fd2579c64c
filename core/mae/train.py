"""The one training loop. Everything random depends on (seed, global step), so a run can be cut anywhere and go on.

Steps 0..a and then a..b with the kept optimizer state give the bits of 0..b in one go; so does `kill -9` and the same
call again. That is what resuming, and a federation's rounds, rest on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from usfmae.core.checkpoint import tensors_id
from usfmae.core.config import TrainRecipe, TrainSettings
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.corpus.loader import Loader, Prepared
from usfmae.core.corpus.patients import PatientLoader
from usfmae.core.errors import UsageError
from usfmae.core.mae.device import (
    augments,
    device_of,
    peak_flops,
    ranks,
    same_everywhere,
    steps_unread,
    strongest,
    training_flops,
)
from usfmae.core.mae.device_batches import DeviceBatch, DeviceLoader, ResidentCorpus, fits
from usfmae.core.mae.lr_schedule import learning_rate
from usfmae.core.mae.model import MaskedAutoencoder
from usfmae.core.mae.optimizer_step import PatientStepper, Stepper, Stop, check_finite, never
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


@dataclass(frozen=True)
class TrainPlan:
    """Which images are trained on, and which steps of a run or a campaign a call does."""

    positions: Positions
    steps: int  # optimizer steps of this call
    start_step: int = 0  # global step at which it begins
    total_steps: int | None = None  # end of the schedule; None: where this call ends

    @property
    def end(self) -> int:
        return self.start_step + self.steps

    @property
    def total(self) -> int:
        return self.total_steps or self.end


@dataclass(frozen=True)
class TrainContext:
    """Where a call keeps its state and its log, and who hears of it. The default keeps nothing and tells nobody."""

    state: Path | None = None  # folder of weights and optimizer state
    log: Path | None = None  # a line a step
    on_step: Callable[[StepRecord], bool | None] | None = None  # may return True to stop after the step
    on_checkpoint: Callable[[int], None] | None = None  # after each checkpoint, with its step
    stop: Stop = never  # once true, also within a step, that step is given up


def train(
    model: MaskedAutoencoder,
    corpus: Corpus,
    settings: TrainSettings,
    plan: TrainPlan,
    context: TrainContext = TrainContext(),
) -> TrainResult:
    """Train in place, step by step as `plan` says.

    With `context.state`, after an interruption the same call goes on where it was, and a later call with another
    `start_step` takes over the optimizer's moments. Raises UsfmaeError where the loss is not finite, ResourceError where
    memory or the disk is full.
    """
    rank, world = ranks()
    if len(plan.positions) == 0 or settings.batch_size < world:
        raise UsageError(f"{len(plan.positions)} images, batch {settings.batch_size}, {world} processes", "too few", "")
    recipe = TrainRecipe.of(settings)
    stepper = stepper_of(model, recipe)
    state = ResumeState(context.state, call_id(model, corpus, recipe, plan), plan.start_step, recipe)
    step = same_everywhere(state.restore(model, stepper.optimizer), device_of(model))
    journal = Journal(context.log if rank == 0 else None, step)
    pace = Pace(model, recipe, context.log is not None)
    unread = Unread(pace, steps_unread(recipe, device_of(model)))
    loss, finished = journal.last_loss, True
    model.train()
    with state:
        for batch, waited in batches_of(model, corpus, recipe, plan, step):
            # One update, unless the training is to stop within it.
            began = time.perf_counter()
            rate = learning_rate(batch.step, plan.total, recipe)
            values = stepper.update(batch, rate, context.stop, wait=unread.limit == 1)
            if values is not None:
                step = batch.step + 1
                unread.add(batch, values, rate, (time.perf_counter() - began, waited))
                if not (unread.full or step == plan.end or at_checkpoint(step, recipe)):
                    continue
            is_over = values is None
            for record in unread.read():
                journal.write(record)
                loss = record.loss
                is_over = bool(context.on_step and context.on_step(record)) or is_over
            if values is None:
                state.save(model, stepper.optimizer, step, corpus.fingerprint)
                finished = False
                break

            # All processes stop, or write a checkpoint, after the same step.
            due = state.due(step) or step == plan.end
            wish = STOP if is_over or context.stop() else CHECKPOINT if due else GO_ON
            wish = strongest(wish, device_of(model))
            if wish:
                state.save(model, stepper.optimizer, step, corpus.fingerprint)
            if wish == CHECKPOINT and context.on_checkpoint:
                context.on_checkpoint(step)
            if wish == STOP:
                finished = False
                break
    seconds = pace.seconds
    speed = (step - state.restored) * recipe.batch_size / seconds
    return TrainResult(step, step - plan.start_step, loss, seconds, speed, pace.waited / seconds, finished)


def stepper_of(model: MaskedAutoencoder, recipe: TrainRecipe) -> Stepper:
    """What makes the steps of a recipe."""
    return PatientStepper(model, recipe) if recipe.dp.noise else Stepper(model, recipe)


GO_ON, CHECKPOINT, STOP = 0, 1, 2  # what a process wishes after a step; the strongest wish of all holds


def batches_of(
    model: MaskedAutoencoder, corpus: Corpus, settings: TrainSettings, plan: TrainPlan, step: int
) -> Iterator[tuple[Prepared | DeviceBatch, float]]:
    """This process's batches from `step` to the plan's end, augmented on the host or, on a GPU, there."""
    device, (rank, world) = device_of(model), ranks()
    if settings.dp.noise:
        yield from PatientLoader(corpus, plan.positions, model.settings, settings).batches(step, plan.end)
        return
    loader = Loader(corpus, plan.positions, model.settings, settings, rank, world)
    if not augments(settings, device):
        yield from loader.batches(step, plan.end)
        return
    drawn = (plan.end - step) * settings.batch_size // world
    resident = ResidentCorpus(corpus, device) if fits(corpus, device, drawn) else None
    yield from DeviceLoader(loader, device, resident).batches(step, plan.end)


def at_checkpoint(step: int, settings: TrainSettings) -> bool:
    """Whether a checkpoint belongs after this step by its number; those by the clock wait for the next look."""
    return bool(settings.checkpoint_steps) and step % (settings.checkpoint_steps or 1) == 0


class Unread:
    """Steps whose losses are still on the device: read together, so that the host does not wait after each."""

    def __init__(self, pace: Pace, limit: int) -> None:
        self.pace, self.limit = pace, limit
        self.steps: list[tuple[Prepared | DeviceBatch, Tensor, float, tuple[float, float]]] = []
        self.since = time.perf_counter()

    @property
    def full(self) -> bool:
        return len(self.steps) >= self.limit

    def add(self, batch: Prepared | DeviceBatch, values: Tensor, rate: float, spent: tuple[float, float]) -> None:
        """`spent`: seconds of work, and of waiting for data."""
        self.steps.append((batch, values, rate, spent))

    def read(self) -> Iterator[StepRecord]:
        """The records of these steps. Raises UsfmaeError at the first that was not finite."""
        steps, self.steps = self.steps, []
        read = torch.stack([step[1] for step in steps]).tolist() if steps else []
        now = time.perf_counter()
        # One step is timed by itself; of several, whose work the device does in its own time, each gets its share.
        share, self.since = (now - self.since) / max(1, len(steps)), now
        for (batch, _, rate, (worked, waited)), (loss, norm) in zip(steps, read, strict=True):
            check_finite(batch, loss, norm)
            spent = worked if self.limit == 1 else max(0.0, share - waited)
            yield self.pace.record(batch.step + 1, loss, rate, norm, (spent, waited))


class Pace:
    """How fast a call of `train` goes."""

    def __init__(self, model: MaskedAutoencoder, settings: TrainSettings, with_mfu: bool) -> None:
        self.flops = training_flops(model.settings, settings.mask_ratio)
        peak = peak_flops(str(device_of(model)), settings.precision) if with_mfu else None
        self.peak = peak and peak * ranks()[1]
        # The clock starts last: measuring a CPU's peak takes longer than a short run.
        self.batch_size, self.began, self.waited = settings.batch_size, time.perf_counter(), 0.0

    def record(self, step: int, loss: float, rate: float, norm: float, spent: tuple[float, float]) -> StepRecord:
        """The log's line of a step; `spent`: seconds of work, and of waiting for data."""
        worked, waited = spent
        self.waited += waited
        seconds = worked + waited
        speed = self.batch_size / seconds
        mfu = speed * self.flops / self.peak if self.peak else None
        return StepRecord(step, loss, rate, norm, speed, mfu, waited / seconds, seconds)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began


def call_id(model: MaskedAutoencoder, corpus: Corpus, recipe: TrainRecipe, plan: TrainPlan) -> str:
    """Equal for two calls of `train` that must give the same weights. What is at its default stays out of it: a later release
    that knows one more setting goes on with the checkpoints of this one."""
    return content_id(
        tensors_id(model.state_dict()),
        corpus.fingerprint,
        plan.positions.tobytes(),
        recipe.model_dump_json(exclude_defaults=True),
        model.settings.model_dump_json(exclude_defaults=True),
        f"{plan.start_step} {plan.steps} {plan.total}",
    )
