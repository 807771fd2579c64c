"""A worker: one decoding process under supervision, started again whenever a file kills or hangs it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from usfmae.core.config import Settings
from usfmae.core.corpus.shard import PackedImage
from usfmae.core.errors import ResourceError
from usfmae.core.read.discover import Candidate
from usfmae.core.sandbox.ipc import Inbox, Message, send
from usfmae.core.types import Scan

# Libraries keep what every size of picture once needed: a process of this size starts anew before the next unit.
RENEW_MIB = 768
START_SECONDS = 120.0  # to import the libraries on a busy machine
THREADS = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# One thread a library, as there is a process per core; and quiet.
ENVIRONMENT = {**dict.fromkeys(THREADS, "1"), "OPENCV_LOG_LEVEL": "OFF"}


FIGURES = ("brightness", "region", "changed")
COMMAND = (sys.executable, "-m", "usfmae.core.sandbox.child")


class ProcessEndedError(Exception):
    """The decoding process crashed or had to be ended."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class StoppedError(Exception):
    """The run was stopped (Ctrl-C, a full disk) while this worker was at work."""


@dataclass(frozen=True)
class Unit:
    """What is cleaned together: one clip, one still, or the stills of one study."""

    scans: tuple[Scan, ...]
    clip: bool = False  # several frames of one scan


@dataclass
class ScanResult:
    """What became of one scan. No identifiers: it goes into the ledger."""

    id: str
    outcome: str = "read"  # "read", "quarantined", "refused", "failed" (tried again by the next run)
    reason: str = ""
    frames: int = 0  # decoded, near-duplicates included
    duplicates: int = 0
    kept: int = 0
    quarantined: dict[str, list[int]] = field(default_factory=dict)  # reason -> indices of frames kept back
    notes: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)  # means over the kept frames, see clean_unit.py


UnitResult = tuple[list[ScanResult], list[PackedImage]]


class Worker:
    """Runs one thing at a time in its decoding process. Not thread-safe: one thread, one worker."""

    def __init__(self, settings: Settings, secret: bytes) -> None:
        self.settings, self.secret = settings, secret
        self.process: subprocess.Popen[bytes] | None = None
        self.stopped = False
        self.inbox = Inbox()

    def stop(self) -> None:
        """End the process for good, from another thread; whoever waits for an answer gets StoppedError."""
        self.stopped = True
        if (process := self.process) is not None:
            process.kill()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe:
                    pipe.close()
            self.process = None

    def _renew(self) -> None:
        """End a process that has grown; the next request starts another."""
        if self.process is not None and _resident_mib(self.process.pid) > RENEW_MIB:
            self.close()

    def _start(self) -> None:
        quiet = None if os.environ.get("USFMAE_DEBUG") else subprocess.DEVNULL
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=quiet,  # libraries' complaints can quote what stands in a file
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
        )
        self.inbox = Inbox()
        assert process.stdin is not None
        self.process = process
        try:
            send(process.stdin, {"settings": self.settings.model_dump(mode="json")}, self.secret)
            self._next(START_SECONDS)  # "ready"
        except (OSError, ProcessEndedError):
            self.close()
            raise ResourceError(
                "decoding process", "does not start", "set USFMAE_DEBUG=1 to see why; often too little memory"
            ) from None

    def _ask(self, request: dict[str, Any]) -> Iterator[Message]:
        """Answers until "done"; raises ProcessEndedError where the process dies or is silent for too long."""
        if self.stopped:
            raise StoppedError
        if self.process is None or self.process.poll() is not None:
            self.close()
            self._start()
        assert self.process is not None and self.process.stdin is not None
        try:
            send(self.process.stdin, request)
        except OSError:
            self._end("crashed")
        seconds = self.settings.read.decode_seconds
        while True:
            message = self._next(seconds)
            event = message[0].get("event")
            if event == "done":
                yield message
                return
            if event == "error":  # the machine lacks something; no scan is to blame
                raise ResourceError(*(str(message[0].get(key, "")) for key in ("what", "why", "do")))
            yield message
            limits = self.settings.read
            seconds = limits.clean_seconds if event in ("cleaning", "image", "quarantined") else limits.decode_seconds

    def _next(self, seconds: float) -> Message:
        assert self.process is not None and self.process.stdout is not None
        deadline = time.monotonic() + seconds
        descriptor = self.process.stdout.fileno()
        while True:
            try:
                message = self.inbox.next()
            except ValueError:
                self._end("crashed")
            if message is not None:
                return message
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                self._end("timeout")
            data = os.read(descriptor, 1 << 20)
            if not data:
                self._end("crashed")
            self.inbox.add(data)

    def _end(self, reason: str) -> NoReturn:
        self.close()
        if self.stopped:
            raise StoppedError
        raise ProcessEndedError(reason)

    def identify(self, candidate: Candidate) -> dict[str, Any]:
        """What a file is, as child.py answers it; never raises for the file's sake."""
        request = {
            "do": "identify",
            "path": str(candidate.path),
            "member": candidate.member,
            "folder": candidate.folder,
        }
        try:
            return self._last(request)
        except ProcessEndedError as error:
            return {"outcome": "quarantined", "reason": error.reason, "id": candidate.place(self.secret)}

    def members(self, archive: Candidate) -> dict[str, Any]:
        """The members of an archive: {"members": [[name, size], ...], "reason": ...}."""
        try:
            return self._last({"do": "members", "path": str(archive.path)})
        except ProcessEndedError as error:
            return {"members": [], "reason": error.reason}

    def _last(self, request: dict[str, Any]) -> dict[str, Any]:
        answer, _ = list(self._ask(request))[-1]
        return {key: value for key, value in answer.items() if key != "event"}

    def process_unit(self, unit: Unit) -> UnitResult:
        """Read and clean a unit. A scan that ends or hangs the process goes to quarantine; the rest is done again."""
        condemned: list[ScanResult] = []
        scans, crashes = list(unit.scans), 0
        while scans:
            try:
                results, images = self._attempt(Unit(tuple(scans), unit.clip))
                self._renew()
                return condemned + results, images
            except _CulpritError as error:
                crashes += error.reason == "crashed"
                # A crash may be the machine's fault (out of memory): it gets a second chance, a hang does not.
                if error.reason == "crashed" and crashes == 1:
                    continue
                condemned.append(ScanResult(error.scan, "quarantined", error.reason))
                scans = [scan for scan in scans if scan.trail.id != error.scan]
                crashes = 0
        return condemned, []

    def _attempt(self, unit: Unit) -> UnitResult:
        results = {scan.trail.id: ScanResult(scan.trail.id) for scan in unit.scans}
        groups = {scan.trail.id: scan for scan in unit.scans}
        images: list[PackedImage] = []
        current = unit.scans[0].trail.id
        request = {"do": "unit", "clip": unit.clip, "scans": [_plain(scan) for scan in unit.scans]}
        try:
            for header, blob in self._ask(request):
                event, current = header["event"], header.get("scan", current)
                result = results[current]
                if event == "image":
                    pixels = np.frombuffer(blob, np.uint8).reshape(header["shape"])
                    scan = groups[current]
                    place = scan.group, scan.dataset, current, int(header["index"])
                    images.append(PackedImage(pixels, header["id"], *place))
                    result.kept += 1
                    for name in FIGURES:
                        result.figures[name] = result.figures.get(name, 0.0) + float(header[name])
                elif event == "quarantined":
                    result.quarantined.setdefault(str(header["reason"]), []).append(int(header["index"]))
                elif event == "scan":
                    result.outcome, result.reason = header["outcome"], header["reason"]
                    result.frames, result.duplicates = header["frames"], header["duplicates"]
                    result.notes = header["notes"]
        except ProcessEndedError as error:
            raise _CulpritError(current, error.reason) from None
        except (KeyError, ValueError, TypeError):
            self.close()
            raise _CulpritError(current, "crashed") from None
        for result in results.values():
            result.figures = {name: round(total / result.kept, 4) for name, total in result.figures.items()}
        return list(results.values()), images

    def show(self, unit: Unit, wanted: str, index: int) -> dict[str, bytes]:
        """PNGs "before", "mask" and "after" of one frame (see preview.py); fewer or none where it cannot be shown."""
        request = {
            "do": "show",
            "clip": unit.clip,
            "scans": [_plain(scan) for scan in unit.scans],
            "wanted": wanted,
            "index": index,
        }
        pictures = {}
        try:
            for header, blob in self._ask(request):
                if header.get("event") == "picture":
                    pictures[str(header.get("name"))] = blob
        except ProcessEndedError:
            pass
        return pictures


class _CulpritError(Exception):
    def __init__(self, scan: str, reason: str) -> None:
        self.scan, self.reason = scan, reason
        super().__init__(reason)


def _resident_mib(pid: int) -> float:
    """Resident memory of a process; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _plain(scan: Scan) -> dict[str, Any]:
    return {
        "path": str(scan.path),
        "member": scan.member,
        "kind": scan.kind,
        "id": scan.trail.id,
        "group": scan.group,
        "dataset": scan.dataset,
    }
