"""The decoding process: `python -m usfmae.core.sandbox.child`, told what to do on stdin, answering on stdout.

Untrusted files are opened here and nowhere else: with a memory limit, one thread per library, no stderr, and a
supervisor that ends the process where the next frame takes too long.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2

from usfmae.core.config import Settings
from usfmae.core.errors import ConfigError, ResourceError
from usfmae.core.read.reader import READERS, reader
from usfmae.core.sandbox.clean_unit import Emit, run_unit
from usfmae.core.sandbox.ipc import receive, send
from usfmae.core.sandbox.preview import show
from usfmae.core.types import Quarantined


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's business
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive the supervisor
    # Libraries that print do not disturb the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def emit(blob: bytes = b"", **header: Any) -> None:
        send(answers, header, blob)

    hello = receive(sys.stdin.buffer)
    if hello is None:
        return
    settings, secret = Settings.model_validate(hello[0]["settings"]), hello[1]
    limit = settings.read.memory_mb << 20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold pixels
    cv2.setNumThreads(1)  # there is a process per core already
    for kind in READERS:
        reader(kind)  # imported before the first file's clock runs
    emit(event="ready")
    work = {"identify": _identify, "members": _members, "unit": run_unit, "show": show}
    while (message := receive(sys.stdin.buffer)) is not None:
        try:
            work[message[0]["do"]](message[0], settings, secret, emit)
        except (ResourceError, ConfigError) as error:  # of this machine, not of the scan
            emit(event="error", what=error.what, why=error.why, do=error.do)


def _identify(header: dict[str, Any], settings: Settings, secret: bytes, emit: Emit) -> None:
    """One candidate -> what it is."""
    from usfmae.core.read.discover import Candidate, Identified, identify
    from usfmae.core.read.refusal_codes import RefusedScan

    candidate = Candidate(Path(header["path"]), header["member"], header["folder"])
    try:
        found = identify(candidate, secret, settings.read)
    except MemoryError:
        found = Quarantined("too-much-memory")
    except OSError as error:
        emit(event="done", outcome="failed", reason=f"os-{error.errno}")
        return
    if found is None:
        emit(event="done", outcome="none")
    elif isinstance(found, Quarantined):
        emit(event="done", outcome="quarantined", reason=found.reason, detail=found.detail, id=found.trail.id)
    elif isinstance(found, RefusedScan):
        emit(event="done", outcome="refused", reason=found.reason)
    else:
        assert isinstance(found, Identified)
        known = {k: v for k, v in asdict(found.facts).items() if k not in ("patient", "study")}
        emit(
            event="done",
            outcome="scan",
            id=found.scan.trail.id,
            kind=found.scan.kind,
            group=found.scan.group,
            study=found.study,
            **known,
        )


def _members(header: dict[str, Any], settings: Settings, secret: bytes, emit: Emit) -> None:
    """An archive -> the names and sizes of its members."""
    from usfmae.core.read.discover import members
    from usfmae.core.read.refusal_codes import Unreadable

    try:
        emit(event="done", members=members(Path(header["path"]), settings.read))
    except Unreadable as error:
        emit(event="done", members=[], reason=error.reason)


if __name__ == "__main__":
    main()
