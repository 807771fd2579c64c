"""Processes of a benchmark: started, watched for their peak of memory, ended."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    **os.environ,
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


def peak_mb(pid: int | str) -> float:
    """Largest resident memory of a process so far (VmHWM), MB of 10^6 bytes; 0 where it has ended."""
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(match[1]) * 1024 / 1e6 if match else 0.0


class Peaks:
    """Watches the peak of some processes, and the largest of some directories, until `stop`."""

    def __init__(self) -> None:
        self.mb: dict[int, float] = {}
        self.directories: dict[Path, int] = {}  # bytes
        self.stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def add(self, process: subprocess.Popen[Any]) -> None:
        self.mb[process.pid] = 0.0

    def _watch(self) -> None:
        while not self.stopped.wait(0.1):
            for pid in list(self.mb):
                self.mb[pid] = max(self.mb[pid], peak_mb(pid))
            for place, most in list(self.directories.items()):
                self.directories[place] = max(most, size(place))

    def stop(self) -> None:
        self.stopped.set()


def size(place: Path) -> int:
    """Bytes of the files below a directory."""
    total = 0
    for file in place.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:  # gone between two looks
            continue
    return total


@contextmanager
def running(*commands: list[str], log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that end with the block; what they print goes to LOG-0.log, LOG-1.log, ..."""
    started = []
    try:
        for number, command in enumerate(commands):
            with (log.parent / f"{log.name}-{number}.log").open("ab") as file:
                started.append(subprocess.Popen(command, stdout=file, stderr=file, env=ENVIRONMENT))
        yield started
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
