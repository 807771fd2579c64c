"""Keeps the aggregator's process up: `usfmae-server run` is this, the work is done in a child.

A child that dies of anything but a person's mistake is started again, with growing pauses; it goes on at the round
and phase it was in. Ends when the rounds are done, or on Ctrl-C and SIGTERM, which are passed on.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from usfmae.core.log import note
from usfmae.server.layout import Layout

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 20.0  # seconds
SOUND_AFTER = 60.0  # seconds a child must live for the pauses to start small again
MISTAKES = (2, 3, 8)  # exit codes that another start cannot mend: usage, config, policy
AT_FIRST = (4, 6, 7)  # ... and on the first start: a damaged seed, a port in use, a full disk; a person is watching


def supervise(home: Layout, rounds: int, overrides: Sequence[str] = ()) -> int:
    """Run children until one ends well; returns the exit code for the shell."""
    command = [sys.executable, "-m", "usfmae.server", "serve", str(home.root), "--rounds", str(rounds)]
    command += [part for override in overrides for part in ("--set", override)]
    pause = 0.5
    final: tuple[int, ...] = (*MISTAKES, *AT_FIRST)
    while True:
        started = time.monotonic()
        child = subprocess.Popen(command)
        code = _follow(child)
        if code is None:
            return 0
        if code == 0 or code in final:
            return code
        final = MISTAKES
        pause = 0.5 if time.monotonic() - started > SOUND_AFTER else min(2 * pause, LONGEST_PAUSE)
        note(logger, "aggregator ended, starting it again", level=logging.ERROR, code=code, pause=pause)
        time.sleep(pause)


def _follow(child: subprocess.Popen[bytes]) -> int | None:
    """The child's exit code, or None where we were asked to stop; the child is gone in any case."""
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        child.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return None if stopping else code
