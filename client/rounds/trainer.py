"""The worker: a round's training in a process of its own. `python -m usfmae.client.rounds.trainer SITE JOB [WARM]`.

It reads a job's directory and the corpus, and writes a result beside them; it has no network and no keys. Killed at
any point, the next one goes on at the last checkpoint and ends with the same bits. Under torchrun every process
trains its share and the first one writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from usfmae.client.rounds import replay_corpus, update_files
from usfmae.client.rounds.jobs import Job
from usfmae.client.rounds.sample_counts import SampleCounts, mixture, parted
from usfmae.client.site import Site, read_json, write_json
from usfmae.core.checkpoint import decoder_of, encoder_of, recipe_of
from usfmae.core.config import TrainSettings
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.corpus.sampling import Sampler
from usfmae.core.errors import ResourceError, UsfmaeError
from usfmae.core.federated.messages import TrainRequest, from_record
from usfmae.core.files import replacing
from usfmae.core.mae.distributed import anyone, joined, ranks
from usfmae.core.mae.model import MaskedAutoencoder, load_tensors
from usfmae.core.mae.train import StepRecord, TrainResult, evaluate, train

DECODER = "decoder.safetensors"
SECONDS_BETWEEN_NOTES = 1.0


class LocalRound:
    """Everything one call of the worker needs to know."""

    def __init__(self, site: Site, work: Job, stop: Callable[[], bool] = lambda: False) -> None:
        self.site, self.work, self.stop = site, work, stop
        about = read_json(work.place / "request.json") or {}
        self.asked = from_record(TrainRequest, about["request"])
        self.model_settings, recipe = recipe_of(self.asked.recipe)
        self.settings = self._fitted(recipe)
        self.total = recipe.steps
        roots, public = replay_corpus.roots(site, self.settings)
        self.corpus = Corpus(roots, only=[*about["shards"], *public])
        self.positions, self.held_out = self._divided(public)
        self.settings = self.settings.model_copy(
            update={"batch_size": max(min(self.settings.batch_size, len(self.positions)), ranks()[1])}
        )
        self.before = Job(site, work.place.parent / about["previous"]) if about["previous"] else None
        self.noted = 0.0
        self.seconds_before = float(work.progress.get("seconds", 0.0))
        self.began = time.monotonic()

    def _fitted(self, recipe: TrainSettings) -> TrainSettings:
        """The campaign's recipe with what this site decides: memory, and how often it is safe on disk."""
        fitted = {
            "keep": 1,
            "checkpoint_steps": min(recipe.checkpoint_steps, max(10, self.asked.steps // 8)),
            "micro_batch": self.site.settings.micro_batch or recipe.micro_batch,
        }
        return recipe.model_copy(update=fitted)

    def _divided(self, public: Sequence[str]) -> tuple[Positions, Positions]:
        """What this round trains on, replayed and new images to their shares, and what it is measured on."""
        own, replayed = parted(self.corpus, public)
        train, held = self.corpus.split(self.settings.held_out, self.settings.seed)
        chosen, settings = self.site.settings, self.settings
        self.own = np.intersect1d(train, own)
        kept = self.work.place / "positions.npy"  # a worker that comes after the uses were counted mixes the same
        if not kept.exists():
            mixed = mixture(
                self.corpus,
                self.own,
                replayed,
                self.uses,
                new_share=chosen.new_share,
                repeats=chosen.new_repeats,
                replay=settings.replay,
                turn=self.asked.round,
                seed=settings.seed,
            )
            if ranks()[0] != 0:
                return mixed, np.intersect1d(held, own)
            with replacing(kept) as partial, partial.open("wb") as file:
                np.save(file, mixed)
        return np.load(kept), np.intersect1d(held, own)

    @property
    def uses(self) -> SampleCounts:
        return SampleCounts(self.site.root / "uses.sqlite")

    def count_uses(self) -> None:
        """Note what this round has drawn: the sampler's order follows from the recipe."""
        settings, first = self.settings, self.asked.global_step
        sampler = Sampler(
            self.positions, self.corpus.datasets, settings.batch_size, settings.seed, settings.temperature
        )
        drawn = (sampler.batch(step) for step in range(first, first + self.asked.steps))
        self.uses.add(self.work.place.name, (self.corpus.ids[p] for batch in drawn for p in batch))

    @property
    def state(self) -> Path:
        """Optimizer state of the campaign at this site; it goes on from round to round and never leaves."""
        return self.site.root / "campaigns" / self.asked.campaign / "state"

    def tensors(self) -> dict[str, Tensor]:
        """The round's encoder with this site's decoder: the last round's, else the seed's that came along."""
        own = self.before.place / DECODER if self.before else self.work.decoder
        decoder = load_file(own if own.exists() else self.work.decoder)
        return {**load_file(self.work.base), **decoder}

    def note(self, record: StepRecord) -> bool:
        """Progress for `status`, at most once a second; True where training should stop after this step."""
        done = record.step - self.asked.global_step
        if time.monotonic() - self.noted > SECONDS_BETWEEN_NOTES or done == self.asked.steps:
            self.noted = time.monotonic()
            if ranks()[0] == 0:
                self._note(step=done, steps=self.asked.steps, loss=record.loss, rate=record.images_per_second)
        return self.stop()

    def _note(self, **fields: Any) -> None:
        seconds = self.seconds_before + time.monotonic() - self.began
        write_json(self.work.place / "progress.json", {**self.work.progress, **fields, "seconds": seconds})

    def loss_before(self, model: MaskedAutoencoder) -> float:
        """Held-out loss of the base; kept, so that a resumed round does not measure its own half-way weights."""
        known = self.work.progress.get("loss_before")
        if known is None:
            known = evaluate(model, self.corpus, self.held_or_all, self.settings)
            if ranks()[0] == 0:
                self._note(loss_before=known)
        return float(known)

    @property
    def held_or_all(self) -> Positions:
        return self.held_out if len(self.held_out) else self.positions


def work_on(this: LocalRound, device: str) -> bool:
    """Train, measure, pack. True when the result is written, False where the worker was asked to stop."""
    model = MaskedAutoencoder(this.model_settings, this.settings.mask_ratio, this.settings.norm_pix)
    load_tensors(model, this.tensors(), "incoming model")
    model.to(device)
    before = this.loss_before(model)
    done = train(
        model,
        this.corpus,
        this.settings,
        positions=this.positions,
        steps=this.asked.steps,
        start_step=this.asked.global_step,
        total_steps=this.total,
        state=this.state,
        log=this.work.place / "log.jsonl",
        on_step=this.note,
    )
    if not done.finished:
        return False
    after = evaluate(model, this.corpus, this.held_or_all, this.settings)
    if ranks()[0] == 0:
        finish(this, model, done, before, after)
    return True


def finish(this: LocalRound, model: MaskedAutoencoder, done: TrainResult, before: float, after: float) -> None:
    """Pack the delta, keep decoder and residue, and write the result last."""
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    _save(this.work.place / DECODER, decoder_of(tensors))
    encoder = ((name, tensor.numpy()) for name, tensor in sorted(encoder_of(tensors).items()))
    packed = update_files.pack(this.work, this.before, encoder, this.asked.encoding)
    result = {
        **packed,
        "images": len(this.own),
        "steps": done.steps,
        "loss_before": before,
        "loss_after": after,
        "seconds": this.seconds_before + time.monotonic() - this.began,
    }
    this.count_uses()
    write_json(this.work.place / "result.json", result)


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    with replacing(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)


class Stop:
    """SIGTERM: leave the loop at the next step, with a checkpoint."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the agent's; it sends SIGTERM

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True


def run(work: Job, stop: Callable[[], bool], device: str = "cpu") -> int:
    """One job under its lock. Exit code 0: finished or stopped; 7: try again when there is room; else it cannot be."""
    first = ranks()[0] == 0
    with (work.place / "lock").open("a") as lock:
        if anyone(first and not _locked(lock), torch.device(device)):
            return 0
        try:
            if first:
                write_json(work.place / "worker.json", {"pid": os.getpid(), "started": time.time()})
            work_on(LocalRound(work.site, work, stop), device)
        except ResourceError as error:
            say(error)
            return error.exit_code
        except UsfmaeError as error:
            say(error)
            write_json(work.place / "error.json", {"what": error.what, "why": error.why})
            return error.exit_code
    return 0


def _locked(lock: IO[str]) -> bool:
    """Whether the job is now this process's; another worker may be at it still."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def say(error: UsfmaeError) -> None:
    """The agent reads this line. The log may lie on the disk that is full: that must not change the exit code."""
    with contextlib.suppress(OSError):
        os.write(2, f"error: {error}\n".encode())


def next_job(seconds: float, stop: Stop) -> str:
    """The name of another job from the agent, "" when none comes in time or the agent is gone."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop.asked:
        if select.select([sys.stdin], [], [], 0.2)[0]:
            return sys.stdin.readline().strip()
    return ""


def main(root: Path, name: str, warm: float = 0.0) -> int:
    """Train one job, and others that come while the process is warm: loading torch takes longer than a small round."""
    from usfmae.core import log

    log.setup()
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
    while name and not stop.asked:
        code = run(Job(site, root / "jobs" / name), lambda: stop.asked, device)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        name = next_job(warm, stop) if code == 0 else ""
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 0.0))
