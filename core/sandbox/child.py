"""The decoding process: `python -m usfmae.core.sandbox.child`, told what to do on a socket, answering on stdout.

Untrusted files are decoded here and nowhere else: confined (see confinement.py), with a memory limit, one thread per
library, no stderr, no secret, no path, and a worker that ends the process where the next frame takes too long. Scans
come as open descriptors that it asks for.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import cv2

from usfmae.core.config import Settings
from usfmae.core.errors import ConfigError, ResourceError
from usfmae.core.read import source
from usfmae.core.read.discover import Examined, examine, members
from usfmae.core.read.facts import Unreadable
from usfmae.core.read.reader import READERS, reader
from usfmae.core.sandbox import ipc, records
from usfmae.core.sandbox.clean_unit import run_unit
from usfmae.core.sandbox.confinement import confine
from usfmae.core.sandbox.preview import preview_frame, show_frame
from usfmae.core.sandbox.records import ANSWERS, REQUESTS, Answer, Request


class Wire:
    """The two streams to the worker."""

    def __init__(self) -> None:
        self.requests = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=os.dup(0))
        # Libraries that print do not disturb the answers.
        self.answers = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def next(self) -> tuple[Request, int | None] | None:
        received = ipc.receive_request(self.requests)
        return None if received is None else (records.decode(REQUESTS, received[0]), received[1])

    def answer(self, record: Answer, blob: bytes = b"") -> None:
        ipc.send(self.answers, records.encode(ANSWERS, record), blob)

    def open(self, path: Path, data_file: str) -> int:
        """A descriptor of a scan of the request; in place of `source.open_file`."""
        self.answer(records.Open(int(path.parts[0]), data_file))
        received = self.next()
        if received is None:
            raise SystemExit
        reply, descriptor = received
        if descriptor is None:
            number = reply.errno if isinstance(reply, records.Opened) else 0
            raise OSError(number, os.strerror(number))
        return descriptor


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the worker's business
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive it
    wire = Wire()
    received = wire.next()
    if received is None or not isinstance(hello := received[0], records.Hello):
        return
    settings = Settings.model_validate(hello.settings)
    limit = settings.read.memory_mb << 20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold pixels
    cv2.setNumThreads(1)  # there is a process per core already
    for kind in READERS:
        reader(kind)  # imported before the first file's clock runs
    source.open_through(wire.open)
    wire.answer(records.Ready(confine(hello.writable)))
    while (received := wire.next()) is not None:
        try:
            DO[type(received[0])](received[0], settings, wire.answer)
        except (ResourceError, ConfigError) as error:  # of this machine, not of the scan
            wire.answer(records.Fault(error.what[:1000], error.why[:1000], error.do[:1000]))


def _identify(request: records.Identify, settings: Settings, answer: Callable[[Answer], None]) -> None:
    try:
        examined = examine(request.scan, settings.read)
    except MemoryError:
        examined = Examined("quarantined", reason="too-much-memory")
    except OSError as error:
        examined = Examined("failed", reason=f"os-{error.errno}")
    answer(records.Identity(examined))
    answer(records.Done())


def _members(request: records.ListMembers, settings: Settings, answer: Callable[[Answer], None]) -> None:
    try:
        answer(records.Members(tuple(members(request.scan.path, settings.read))))
    except Unreadable as error:
        answer(records.Members((), error.reason))
    answer(records.Done())


DO: dict[type, Callable[..., None]] = {
    records.Identify: _identify,
    records.ListMembers: _members,
    records.CleanUnit: run_unit,
    records.ShowFrame: show_frame,
    records.PreviewFrame: preview_frame,
}


if __name__ == "__main__":
    main()
