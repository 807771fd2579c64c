"""Real processes, started and ended by id: whatever happens, nothing is left running."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from usfmae.core.errors import ResourceError, UsfmaeError

GRACE = 20.0  # seconds a process gets to end by itself after SIGTERM


class Process:
    """One command of ours; what it prints goes to `NAME.out`, what it says to `NAME.log`."""

    def __init__(self, arguments: Sequence[str | Path], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.arguments, self.log = [str(a) for a in arguments], log
        self.out = log.with_suffix(".out")
        with self.out.open("wb") as output, log.open("wb") as errors:
            # A session of its own: Ctrl-C reaches only the demo, which then ends its processes in order.
            self.popen = subprocess.Popen(
                [program(self.arguments[0]), *self.arguments[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
                # One thread each: the processes of a demo share the machine's cores, and spinning threads do not.
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def check(self) -> None:
        """UsfmaeError with the command's own last words where it ended with an error; its exit code is kept."""
        code = self.popen.poll()
        if code not in (None, 0):
            error = UsfmaeError(" ".join(self.arguments[:2]), self.last_words(), f"see {self.log}")
            error.exit_code = code if 0 < code < 126 else 1
            raise error

    def printed(self) -> Any:
        """The JSON value that a command with --json printed."""
        try:
            return json.loads(self.out.read_text())
        except ValueError:
            raise UsfmaeError(" ".join(self.arguments[:2]), "printed no JSON", f"see {self.out}") from None

    def last_words(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["it said nothing"])[-1].removeprefix("error: ")

    def stop(self) -> None:
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            self.popen.wait(GRACE)
        except subprocess.TimeoutExpired:
            # Its session is its own, so this reaches the processes it started, and no others.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()


def program(name: str) -> str:
    """An installed command, as a user would start it: beside this Python, else on the PATH. ResourceError without."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        raise ResourceError(f"program {name!r}", "is not installed", "pip install usfmae into this environment")
    return path


@contextlib.contextmanager
def running() -> Iterator[list[Process]]:
    """Processes put on the list are ended, last started first, when the block is left in any way."""
    started: list[Process] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield started
    finally:
        # A second Ctrl-C must not cut the ending short.
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for process in reversed(started):
            if process.popen.poll() is None:
                process.popen.terminate()
        for process in reversed(started):
            process.stop()
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, before)


def wait_all(processes: Sequence[Process], watched: Sequence[Process] = (), timeout: float = 3600.0) -> None:
    """Wait until all of `processes` ended well, while none of `watched` fails. UsfmaeError otherwise."""
    end = time.monotonic() + timeout
    while any(p.popen.poll() is None for p in processes):
        for process in (*processes, *watched):
            process.check()
        if time.monotonic() > end:
            raise UsfmaeError(processes[0].arguments[0], f"not done after {timeout:.0f} s", f"see {processes[0].log}")
        time.sleep(0.2)
    for process in processes:
        process.check()
