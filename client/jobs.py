"""One round's work at a site: a directory, and a detached process that trains in it.

    DIR/jobs/KEY/request.json         the request, its shards, where decoder and optimizer come from
    DIR/jobs/KEY/base.safetensors     the encoder that came
    DIR/jobs/KEY/state/               checkpoint inside the round
    DIR/jobs/KEY/progress.json        step, loss, rate
    DIR/jobs/KEY/result.json          written last: the work is done
    DIR/jobs/KEY/error.json           why it cannot be done
    DIR/jobs/KEY/lock                 held by the living worker, whoever started it

The worker is a session of its own: it outlives the agent, and the next agent finds it by its lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usfmae.client import allowance, outbox
from usfmae.client.site import Site, read_json, write_json
from usfmae.core.config import TrainSettings
from usfmae.core.errors import ResourceError
from usfmae.core.log import note
from usfmae.core.protocol import TrainRequest, to_record

MOST_CRASHES = 5  # in a row without a step between them
LONGEST_LOG = 2**20  # bytes
CHECKPOINT = 4  # size of a training checkpoint: weights and two moments, and the decoder's, in base encoders
FULL = "disk or memory is full"  # where the worker's own words did not fit on the disk either

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    site: Site
    place: Path

    @property
    def base(self) -> Path:
        return self.place / "base.safetensors"

    @property
    def decoder(self) -> Path:
        """The seed's decoder, where it came with the request."""
        return self.place / "seed-decoder.safetensors"

    @property
    def result(self) -> dict[str, Any] | None:
        return read_json(self.place / "result.json")

    @property
    def error(self) -> dict[str, Any] | None:
        return read_json(self.place / "error.json")

    @property
    def ended(self) -> bool:
        """Its result, or why there is none, is written."""
        return any((self.place / name).exists() for name in ("result.json", "error.json"))

    @property
    def progress(self) -> dict[str, Any]:
        return read_json(self.place / "progress.json") or {}

    @property
    def asked(self) -> dict[str, Any]:
        """The request's record; empty until the job is ready."""
        found: dict[str, Any] = (read_json(self.place / "request.json") or {}).get("request", {})
        return found

    @property
    def ready(self) -> bool:
        """The request and its base are on disk."""
        return (self.place / "request.json").exists()

    def alive(self) -> bool:
        """A worker holds the lock, this agent's or an earlier one's."""
        try:
            with (self.place / "lock").open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


def job(site: Site, request: TrainRequest) -> Job:
    return Job(site, site.root / "jobs" / outbox.key(request))


def prepare(work: Job, request: TrainRequest, norms: dict[str, float]) -> None:
    """Write down what the worker needs; from now on the round can be trained without the network."""
    shards = sorted(str(found) for found in shard_sums(work.site))
    before = previous(work.site, request)
    about = {
        "request": to_record(request),
        "norms": norms,
        "shards": shards,
        "previous": before.place.name if before else "",
        "created": time.time(),
    }
    write_json(work.place / "request.json", about)


def shard_sums(site: Site) -> Iterator[str]:
    """Checksums of the corpus' shards as they are now, so that a resumed round trains on the same images."""
    from usfmae.core.corpus.shard import FOLDER, read_index

    for path in sorted((site.corpus / FOLDER).glob("*.json")):
        yield read_index(path).sha256


def images(site: Site) -> int:
    """Images in the site's corpus."""
    from usfmae.core.corpus.shard import FOLDER

    return sum(_count(path, path.stat().st_mtime_ns) for path in (site.corpus / FOLDER).glob("*.json"))


@functools.lru_cache(maxsize=65536)
def _count(index: Path, changed: int) -> int:
    """Images of one shard; asked at every look while a request waits."""
    from usfmae.core.corpus.shard import read_index

    return read_index(index).shard.count


def _count(index: Path, changed: int) -> int:
    """Images of one shard; a shard never changes, so its index is read once."""
    from usfmae.core.corpus.shard import read_index

    return read_index(index).shard.count


def new_images(site: Site, recipe: TrainSettings) -> int:
    """Images this site may train on and never has."""
    from usfmae.client.uses import Uses
    from usfmae.core.corpus.batch import Corpus

    corpus = Corpus([site.corpus], verify=False)
    train = corpus.split(recipe.held_out, recipe.seed)[0]
    uses = Uses(site.root / "uses.sqlite").of(corpus.ids[p] for p in train)
    return int((uses == 0).sum())


def finished(site: Site, campaign: str) -> list[tuple[int, Job]]:
    """Rounds of a campaign that were trained here, oldest first."""
    found = []
    for place in (site.root / "jobs").glob("*/result.json"):
        about = read_json(place.parent / "request.json") or {}
        asked = about.get("request", {})
        if asked.get("campaign") == campaign:
            found.append((int(asked["round"]), float(about.get("created", 0.0)), Job(site, place.parent)))
    return [(number, work) for number, _, work in sorted(found, key=lambda entry: entry[:2])]


def previous(site: Site, request: TrainRequest) -> Job | None:
    """The latest earlier round: its decoder, optimizer state and rounding residue go on from there."""
    earlier = [work for number, work in finished(site, request.campaign) if number < request.round]
    return earlier[-1] if earlier else None


def parent_norms(site: Site, request: TrainRequest) -> dict[str, float] | None:
    """Norms of the last encoder this site accepted in the campaign."""
    before = previous(site, request)
    return (read_json(before.place / "request.json") or {}).get("norms") if before else None


def prune(site: Site, request: TrainRequest) -> None:
    """Remove rounds that are too old to be asked for again."""
    for number, work in finished(site, request.campaign):
        if number <= request.round - site.settings.keep_rounds and not work.alive():
            shutil.rmtree(work.place, ignore_errors=True)


class Workers:
    """The one training process of a site: started, watched, restarted with back-off, stopped with a checkpoint."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.process: subprocess.Popen[bytes] | None = None
        self.given = ""  # name of the job the process was last given
        self.crashes, self.last_step, self.not_before = 0, -1, 0.0

    def warm_up(self) -> None:
        """Have the worker load while a model is still on its way."""
        if self.process is None and time.time() >= self.not_before and len(self._gpus()) < 2:
            self._start("")

    def tend(self, work: Job) -> None:
        """Have a worker on this job, unless one is or the last one crashed a moment ago."""
        if self.process is not None and self.process.poll() is not None:
            self._ended(work)
        if work.result or work.error or work.alive() or time.time() < self.not_before:
            return
        if self.process is None:
            self._start(work.place.name)
        elif not self.given:
            self._hand_over(work.place.name)
        else:
            former = Job(self.site, work.place.parent / self.given)
            if former.result or former.error:
                self._hand_over(work.place.name)

    def _hand_over(self, name: str) -> None:
        """Another job for the process that is warm."""
        assert self.process is not None and self.process.stdin is not None
        self.given = name
        with contextlib.suppress(BrokenPipeError):  # it cooled down this very moment: the next look starts another
            self.process.stdin.write(name.encode() + b"\n")
            self.process.stdin.flush()

    def _ended(self, work: Job) -> None:
        code, self.process = self.process.returncode if self.process else 0, None
        step = int(work.progress.get("step", 0))
        if code == 0 or work.result or work.error:
            self.crashes = 0
            return
        if code == ResourceError.exit_code:  # disk or memory: it may come right, so this never gives up
            self.not_before = time.time() + 30.0
            raise ResourceError(
                f"training {work.place.name}", last_words(self.site) or FULL, "it is tried again every 30 s"
            )
        self._check_disk(work)
        self.crashes = self.crashes + 1 if step == self.last_step else 1
        self.last_step, self.not_before = step, time.time() + min(2.0**self.crashes, 300.0)
        self.site.note("worker.crashed", "failed", job=work.place.name, code=code, step=step)
        note(logger, "worker crashed, starting it again", level=logging.WARNING, code=code, step=step)
        if self.crashes >= MOST_CRASHES:
            write_json(work.place / "error.json", {"what": f"training ended {self.crashes} times with code {code}"})

    def _check_disk(self, work: Job) -> None:
        """ResourceError, and no crash to count, where there is no room for a checkpoint: nothing could be written."""
        try:
            allowance.check_disk(self.site, CHECKPOINT * work.base.stat().st_size)
        except ResourceError:
            self.not_before = time.time() + 30.0
            raise

    def _gpus(self) -> list[int]:
        return allowance.chosen_gpus(self.site.settings.device, len(allowance.gpus()))

    def _start(self, name: str) -> None:
        """A process for this job, or for one that comes later; under torchrun where there are several GPUs."""
        settings, gpus = self.site.settings, self._gpus()
        command = [sys.executable, "-m"]
        if len(gpus) > 1:
            command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={len(gpus)}", "-m"]
        command += ["usfmae.client.trainer", str(self.site.root.absolute()), name]
        command += [] if len(gpus) > 1 else [str(settings.warm)]
        environment = {**os.environ, **allowance.visible(gpus)}
        if settings.threads:
            environment["OMP_NUM_THREADS"] = str(settings.threads)
        with worker_log(self.site).open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self.given = name

    def stop(self, work: Job | None, wait: float) -> None:
        """Ask the worker, whoever started it, to write its checkpoint and end; force it after `wait` seconds."""
        if self.process is not None and self.process.poll() is None:
            pid = self.process.pid
        elif work is not None and work.alive():
            pid = int((read_json(work.place / "worker.json") or {}).get("pid", 0))
        else:
            return
        for number, seconds in ((signal.SIGTERM, wait), (signal.SIGKILL, 5.0)):
            if not pid or not _signal(pid, number) or self._gone(work, seconds):
                break
        self.process = None

    def _gone(self, work: Job | None, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ended = self.process is None or self.process.poll() is not None
            if ended and not (work and work.alive()):
                return True
            time.sleep(0.05)
        return False


def worker_log(site: Site) -> Path:
    """What the workers print; begun anew when it has grown."""
    path = site.root / "worker.log"
    if path.exists() and path.stat().st_size > LONGEST_LOG:
        path.replace(path.with_suffix(".log.1"))
    return path


def last_words(site: Site) -> str:
    """The last line a worker wrote."""
    try:
        lines = worker_log(site).read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].removeprefix("error: ")[:300] if lines else ""


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
