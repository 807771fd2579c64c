"""The demo without a network: many virtual hospitals in one process, through the aggregator's own loop and gate."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from usfmae.core.demo.processes import Process, running
from usfmae.core.demo.story import fresh
from usfmae.core.files import write_atomic


def simulate(out: Path, hospitals: int, rounds: int, steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the rounds, say each as it ends, and return what summary.json holds: `usfmae-server status`, memory, time."""
    fresh(out)
    began = time.monotonic()
    numbers = ("--sites", str(hospitals), "--rounds", str(rounds), "--steps", str(steps))
    say(f"{hospitals} virtual hospitals, {rounds} rounds, no network")
    with running() as processes:
        command = ("usfmae-server", "simulate", out / "coordinator", *numbers, "--json")
        processes.append(Process(command, out / "logs" / "simulate.log"))
        _relayed(processes[0], say)
        summary: dict[str, Any] = {**processes[0].printed(), "seconds": round(time.monotonic() - began, 1)}
    write_atomic(out / "summary.json", json.dumps(summary, indent=2).encode())
    return summary


def _relayed(process: Process, say: Callable[[str], None]) -> None:
    """What the process says, line by line, until it ends. UsfmaeError where it ends with an error."""
    with process.log.open() as log:
        while True:
            ended = process.popen.poll() is not None
            for line in log:
                say(line.rstrip())
            if ended:
                process.check()
                return
            time.sleep(0.2)
