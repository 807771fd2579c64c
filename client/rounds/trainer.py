"""The worker: a round's training in a process of its own. `python -m usfmae.client.rounds.trainer SITE JOB [WARM]`.

It reads a job's directory and the corpus, and writes a result beside them; it has no network and no keys. Killed at
any point, the next one goes on at the last checkpoint and ends with the same bits. Under torchrun every process
trains its share and the first one writes.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from usfmae.client import dp_budget, outbox, site_policy
from usfmae.client.review import gallery
from usfmae.client.rounds import (
    encoder_behaviour,
    frozen_teacher,
    gradient_behaviour,
    replay_corpus,
    text_canary,
    update_files,
    update_probe,
)
from usfmae.client.rounds.apply_step import LostError
from usfmae.client.rounds.jobs import Job
from usfmae.client.rounds.sample_counts import SampleCounts, parted
from usfmae.client.site import Site, read_json, write_json
from usfmae.core.checkpoint_header import recipe_of
from usfmae.core.config import TrainRecipe
from usfmae.core.config.train import Recipe
from usfmae.core.corpus.augment import plain
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.corpus.patients import PatientSampler
from usfmae.core.corpus.sampling import Sampler
from usfmae.core.errors import PolicyError, ResourceError, UsfmaeError
from usfmae.core.federated.local_round import (
    LocalRound,
    Progress,
    StartWeights,
    Tensors,
    Trained,
    TrainingData,
    local_round,
    train_autoencoder,
)
from usfmae.core.federated.messages import DeclineReason, TrainRequest, from_record
from usfmae.core.federated.privacy import (
    FEWEST_MEASURED,
    Drawn,
    check_drawn,
    drawn,
    learning_rates,
    parameters,
    same_pixels,
    working_steps,
)
from usfmae.core.federated.replay import with_replay
from usfmae.core.files import hold, replacing
from usfmae.core.mae.device import anyone, device_of, joined, ranks
from usfmae.core.mae.device_batches import normalise
from usfmae.core.mae.model import MaskedAutoencoder
from usfmae.core.mae.number_type import computing_in, number_type
from usfmae.core.mae.train import StepRecord
from usfmae.core.tensors import TensorFile, TensorMapping

SECONDS_BETWEEN_NOTES = 1.0
STATE = 12  # bytes of weights and optimizer state a parameter
MOST_WRITTEN = 1e8  # bytes of state a step, on average: a recipe that wants it after each step would wear a disk out
INSPECTED = 8  # images of the site on which an incoming model is tried


class TrainingJob:
    """Everything one call of the worker needs to know."""

    def __init__(self, site: Site, work: Job, stop: Callable[[], bool] = lambda: False) -> None:
        self.site, self.work, self.stop = site, work, stop
        prepared = read_json(work.place / "request.json") or {}
        self.request = from_record(TrainRequest, prepared["request"])
        self.model_settings, recipe = recipe_of(self.request.recipe)
        self.recipe = recipe
        self.settings = self._fitted(recipe)
        roots, public = replay_corpus.roots(site, self.settings)
        privacy = site.settings.privacy
        plants = privacy.probe and privacy.canary and not recipe.dp.noise and recipe.target == "pixels"
        shards = [*prepared["shards"], *public]
        self.canary = text_canary.planted(site) if plants else None
        if self.canary:
            roots, shards = [*roots, self.canary[0]], [*shards, self.canary[1]]
        self.corpus = Corpus(roots, only=shards)
        self.positions, self.held_out = self._divided(public)
        batch = max(min(self.settings.batch_size, len(self.positions)), ranks()[1])
        # From here on the site's own seed decides: no other party chooses the order of images, masks or augmentation.
        own = int(prepared["order"])
        seed = dp_budget.seed(own, dp_budget.task_of(self.request, self.corpus)) if self.settings.dp.noise else own
        self.settings = self.settings.model_copy(update={"batch_size": batch, "seed": seed})
        self.before = Job(site, work.place.parent / prepared["previous"]) if prepared["previous"] else None
        self.noted = 0.0
        self.seconds_before = float(work.progress.get("seconds", 0.0))
        self.began = time.monotonic()

    def _fitted(self, recipe: TrainRecipe) -> TrainRecipe:
        """The campaign's recipe with what this site decides: memory, and how often it is safe on disk."""
        wanted = min(recipe.checkpoint_steps or 500, max(10, self.request.steps // 8))
        fitted = {
            "keep": 1,
            "checkpoint_steps": max(wanted, math.ceil(STATE * parameters(self.model_settings) / MOST_WRITTEN)),
            "micro_batch": self.site.settings.micro_batch or recipe.micro_batch,
        }
        return recipe.model_copy(update=fitted)

    def _divided(self, public: Sequence[str]) -> tuple[Positions, Positions]:
        """What this round trains on, replayed and new images to their shares, and what it is measured on."""
        planted = [self.canary[1]] if self.canary else []
        own, _ = parted(self.corpus, [*public, *planted])
        (_, canary), (_, replayed) = parted(self.corpus, planted), parted(self.corpus, public)
        train, held = self.corpus.split(self.settings.held_out, self.settings.seed)
        if self.settings.dp.noise and len(replayed):
            raise PolicyError("train.dp", "knows no replayed images", "choose replay 0 for such a campaign")
        chosen, settings = self.site.settings, self.settings
        self.own = np.intersect1d(train, own)
        # A worker that comes after the uses were counted mixes the same.
        positions_file = self.work.place / "positions.npy"
        if not positions_file.exists():
            # Each patient has one chance in a step of DP-SGD, whatever was trained on before.
            share = 0.0 if self.settings.dp.noise else chosen.new_share
            new_and_old = self.uses.mixed(self.corpus, self.own, share, chosen.new_repeats)
            mixed = with_replay(new_and_old, replayed, settings.replay, self.request.round, settings.seed)
            mixed = np.concatenate([mixed, canary])
            if ranks()[0] != 0:
                return mixed, np.intersect1d(held, own)
            with replacing(positions_file) as partial, partial.open("wb") as file:
                np.save(file, mixed)
        return np.load(positions_file), np.intersect1d(held, own)

    @property
    def uses(self) -> SampleCounts:
        return SampleCounts(self.site.root / "uses.sqlite")

    @cached_property
    def draws(self) -> Positions:
        """Every image that this round draws, with repeats: they follow from the recipe and the site's own seed."""
        return np.concatenate([np.zeros(0, np.int64), *self._batches])

    @cached_property
    def _batches(self) -> list[Positions]:
        settings, first = self.settings, self.request.global_step
        steps = range(first, first + self.request.steps)
        if settings.dp.noise:
            return [self.patients.batch(step) for step in steps]
        sampler = Sampler(
            self.positions, self.corpus.datasets, settings.batch_size, settings.seed, settings.temperature
        )
        return list(sampler.between(first, steps.stop).reshape(len(steps), -1))

    @property
    def patients(self) -> PatientSampler:
        """Whom the steps of a training with differential privacy take."""
        return PatientSampler(self.positions, self.corpus.groups, self.settings.batch_size, self.settings.seed)

    @cached_property
    def drawn(self) -> Drawn:
        """Different images and patients among the draws of the steps that change the weights; a copy is no other image."""
        sizes = [len(batch) for batch in self._batches]
        draws = self.draws[np.repeat(working_steps(self.request, self.recipe), sizes)]
        mine = np.isin(draws, self.own)
        draws[mine] = same_pixels(self.corpus, draws[mine])
        return drawn(draws, self.corpus.groups, self.own)

    def probe(self, base: TensorFile, trained: Trained) -> dict[str, Any]:
        """What could be read out of the update; empty where this site does not want to know."""
        if not self.site.settings.privacy.probe:
            return {}
        first = self.request.global_step
        steps = (first, first + self.request.steps)
        drawn = np.intersect1d(self.draws, self.own)
        seen = update_probe.Round(self.corpus, drawn, self.held_out, steps, self.model_settings, self.settings)
        weights = base.tensor(update_probe.PROJECTION), trained.encoder[update_probe.PROJECTION]
        decay = learning_rates(self.request, self.recipe) * self.recipe.weight_decay
        change = update_probe.gradients(*weights, decay)
        figures = [update_probe.probe(change, replace(seen, drawn=self.positions), self.work.place / outbox.PICTURE)]
        if self.settings.target == "pixels":
            networks = update_probe.networks_of((TensorMapping(base), trained.encoder), trained.decoder, seen)
            figures.append(update_probe.told_apart(networks, seen))
            if self.canary:
                figures.append(update_probe.lettering(networks, self.site.secret, self.settings))
        return update_probe.joined(figures)

    @property
    def spending(self) -> dp_budget.Spending:
        """What this round may tell of a patient."""
        noise, steps = self.settings.dp.noise, self.request.steps
        task = dp_budget.task_of(self.request, self.corpus)
        return dp_budget.Spending(task, noise, self.patients.share, steps)

    def count_uses(self) -> None:
        """Note what this round has drawn."""
        self.uses.add(self.work.place.name, (self.corpus.ids[p] for p in self.draws))

    def inspect(self, model: MaskedAutoencoder) -> None:
        """PolicyError where the incoming model behaves on this site's images as no trained encoder does."""
        if not self.site.settings.privacy.inspection:
            return
        rows = self.own[:: max(1, len(self.own) // INSPECTED)][:INSPECTED]
        pixels = plain(self.corpus.fetch(rows).pixels, self.model_settings.image_size)
        images = normalise(pixels, self.settings, device_of(model))
        encoder_behaviour.inspect(model, images)
        gradient_behaviour.inspect(model, images)

    @property
    def state(self) -> Path:
        """Optimizer state of the campaign at this site; it goes on from round to round and never leaves."""
        return self.site.root / "campaigns" / self.request.campaign / "state"

    def decoder(self) -> Tensors:
        """This site's decoder: the last round's, else the seed's that came along.

        LostError where neither is here whole: a damaged one is removed, and the coordinator asked for the seed's.
        """
        files = [self.before.trained_decoder] if self.before else []
        for file in [*files, self.work.decoder]:
            if file.exists() and update_files.is_whole(file):
                return load_file(file)
            file.unlink(missing_ok=True)
        raise LostError("decoder", "this site's is lost or damaged", DeclineReason.NEED_DECODER)

    def teacher(self, base: Tensors) -> Tensors | None:
        """The frozen encoder whose features this campaign predicts; None where it predicts pixels."""
        return frozen_teacher.load(self.site, self.request, self.settings, base, ranks()[0] == 0)

    def note(self, record: StepRecord) -> bool:
        """Progress for `status`, at most once a second; True where training should stop after this step."""
        done = record.step - self.request.global_step
        if time.monotonic() - self.noted > SECONDS_BETWEEN_NOTES or done == self.request.steps:
            self.noted = time.monotonic()
            if ranks()[0] == 0:
                self._note(step=done, steps=self.request.steps, loss=record.loss, rate=record.images_per_second)
        return self.stop()

    def _note(self, **fields: Any) -> None:
        seconds = self.seconds_before + time.monotonic() - self.began
        write_json(self.work.place / "progress.json", {**self.work.progress, **fields, "seconds": seconds})

    @property
    def data(self) -> TrainingData:
        fewest = min(FEWEST_MEASURED, self.site.settings.privacy.min_images)
        measured = self.held_out if len(self.held_out) >= fewest else self.positions
        return TrainingData(self.corpus, self.positions, measured, len(self.own))

    def draw(self, model: MaskedAutoencoder) -> None:
        """A panel of reconstructions for the people of this site."""
        if ranks()[0] == 0:
            gallery.draw(self.site, self.request, model, self.corpus, self.data.measured, self.settings)

    @property
    def progress(self) -> Progress:
        """The loss of the base is noted, so that a resumed round does not measure it again."""
        return Progress(
            state=self.state,
            log=self.work.place / "log.jsonl",
            loss_before=self.work.progress.get("loss_before"),
            on_loss_before=lambda loss: self._note(loss_before=loss) if ranks()[0] == 0 else None,
            on_step=self.note,
            on_model=self.inspect,
            on_trained=self.draw,
        )


def number_type_of(this: TrainingJob, device: str) -> contextlib.AbstractContextManager[None]:
    """What a CPU computes in: measured in the site's first round, and kept, so that a round done again has its bits."""
    if device != "cpu" or ranks()[1] > 1:
        return contextlib.nullcontext()
    file = this.site.root / "number-type.json"
    return computing_in(number_type(this.model_settings, this.settings, device, file).chosen)


def work_on(this: TrainingJob, device: str) -> bool:
    """Train, measure, pack. True when the result is written, False where the worker was asked to stop.

    PolicyError where the update would draw on too little, or the incoming model is unfit.
    """
    check_drawn(this.drawn, this.site.settings.privacy)
    if this.settings.dp.noise:
        dp_budget.of(this.site).spend(this.spending)  # before the first step
    with (
        number_type_of(this, device),
        TensorFile(this.work.base) as file,
        update_files.residual_of(this.before, file, this.request.encoding) as left,
    ):
        base = TensorMapping(file)
        learn = partial(
            train_autoencoder,
            StartWeights(base, this.decoder(), this.teacher(base)),
            this.data,
            this.request,
            Recipe(this.model_settings, this.settings),
            this.progress,
            device,
        )
        done = local_round(base, this.request, left, learn)
        if done is not None and ranks()[0] == 0:
            finish(this, file, done)
    return done is not None


def finish(this: TrainingJob, base: TensorFile, done: LocalRound) -> None:
    """Write decoder, update and residual, and the result last."""
    with replacing(this.work.trained_decoder) as partial_file:
        save_file({name: np.ascontiguousarray(values) for name, values in done.trained.decoder.items()}, partial_file)
    update_files.seal(this.work.trained_decoder)
    packed = update_files.write(this.work, this.before, base, done.payload, this.request.encoding)
    trained = done.trained
    result = {
        **packed,
        "drawn": this.drawn.as_dict(),
        "probe": this.probe(base, trained),
        "images": trained.images,
        "steps": trained.steps,
        "loss_before": trained.loss_before,
        "loss_after": trained.loss_after,
        "seconds": this.seconds_before + time.monotonic() - this.began,
    }
    if this.settings.dp.noise:  # figures of the images would tell beside the budget
        result |= dp_budget.untold(this.site, this.settings.dp)
    this.count_uses()
    write_json(this.work.place / "result.json", result)


class Stop:
    """SIGTERM: leave the loop at the next step, with a checkpoint."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._request)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the agent's; it sends SIGTERM

    def _request(self, number: int, frame: object) -> None:
        self.requested = True


def run(work: Job, stop: Callable[[], bool], device: str = "cpu") -> int:
    """One job under its lock. Exit code 0: finished or stopped; 7: try again when there is room; else it cannot be."""
    first = ranks()[0] == 0
    with (work.place / "lock").open("a") as lock:
        if anyone(first and not hold(lock), torch.device(device)):
            return 0
        try:
            if first:
                write_json(work.place / "worker.json", {"pid": os.getpid(), "started": time.time()})
            work_on(TrainingJob(work.site, work, stop), device)
        except ResourceError as error:
            say(error)
            return error.exit_code
        except LostError as error:  # the job is no longer ready: the agent asks for what is lost
            say(error)
            (work.place / "request.json").unlink(missing_ok=True)
        except UsfmaeError as error:
            say(error)
            refused = isinstance(error, PolicyError)
            write_json(work.place / "error.json", {"what": error.what, "why": error.why, "refused": refused})
            return error.exit_code
    return 0


def say(error: UsfmaeError) -> None:
    """The agent reads this line. The log may lie on the disk that is full: that must not change the exit code."""
    with contextlib.suppress(OSError):
        os.write(2, f"error: {error}\n".encode())


def next_job(seconds: float, stop: Stop) -> str:
    """The name of another job from the agent, "" when none comes in time or the agent is gone."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop.requested:
        if select.select([sys.stdin], [], [], 0.2)[0]:
            return sys.stdin.readline().strip()
    return ""


def main(root: Path, name: str, warm: float = 0.0) -> int:
    """Train one job, and others that come while the process is warm: loading torch takes longer than a small round."""
    from usfmae.core import log

    log.setup()
    site_policy.limit_memory(Site.open(root))
    with joined("cuda" if torch.cuda.is_available() else "cpu") as device:
        if code := jobs(root, name, warm, device):
            raise SystemExit(code)
    return 0


def jobs(root: Path, name: str, warm: float, device: str) -> int:
    """One job after another until none comes; the code of the last."""
    stop, site, code = Stop(), Site.open(root), 0
    if not name:
        torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # the first optimizer of a process loads for seconds
        name = next_job(warm, stop)
    while name and not stop.requested:
        code = run(Job(site, root / "jobs" / name), lambda: stop.requested, device)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        name = next_job(warm, stop) if code == 0 else ""
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 0.0))
