"""The detached process that trains a site's jobs: started, watched, restarted, stopped.

It is a session of its own: it outlives the agent, and the next agent finds it by the lock on its job.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from usfmae.client import site_policy
from usfmae.client.rounds.jobs import Job
from usfmae.client.site import Site, read_json, write_json
from usfmae.core.errors import ResourceError
from usfmae.core.log import note
from usfmae.core.mae import allocator

MOST_CRASHES = 5  # in a row without a step between them
LONGEST_LOG = 2**20  # bytes
CHECKPOINT = 4  # size of a training checkpoint: weights and two moments, and the decoder's, in base encoders
FULL = "disk or memory is full"  # where the worker's own words did not fit on the disk either

logger = logging.getLogger(__name__)


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
            site_policy.check_disk(self.site, CHECKPOINT * work.base.stat().st_size)
        except ResourceError:
            self.not_before = time.time() + 30.0
            raise

    def _gpus(self) -> list[int]:
        return site_policy.chosen_gpus(self.site.settings.device, len(site_policy.gpus()))

    def _start(self, name: str) -> None:
        """A process for this job, or for one that comes later; under torchrun where there are several GPUs."""
        settings, gpus = self.site.settings, self._gpus()
        command = [sys.executable, "-m"]
        if len(gpus) > 1:
            command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={len(gpus)}", "-m"]
        command += ["usfmae.client.rounds.trainer", str(self.site.root.absolute()), name]
        command += [] if len(gpus) > 1 else [str(settings.warm)]
        environment = {**os.environ, **allocator.environment(), **site_policy.visible(gpus)}
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
