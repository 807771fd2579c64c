"""A worker: one decoding process under supervision, started again whenever a file kills or hangs it.

The worker opens the files and hands their descriptors over; the process has no right to open any. What it answers is
checked: each record is validated, and the books of each scan must balance.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from usfmae.core.config import Settings
from usfmae.core.corpus.shard import PackedImage
from usfmae.core.errors import ResourceError
from usfmae.core.read import source
from usfmae.core.read.discover import Candidate, Examined, Identified, named
from usfmae.core.read.facts import RefusedScan
from usfmae.core.sandbox import ipc, records
from usfmae.core.sandbox.records import ANSWERS, REQUESTS, Answer, Request, ScanResult, Unit, handed_over
from usfmae.core.types import Quarantined, Scan, Trail, content_id

logger = logging.getLogger(__name__)

# Libraries keep what every size of picture once needed: a process of this size starts anew before the next unit.
RENEW_MIB = 768
START_SECONDS = 120.0  # to import the libraries on a busy machine
THREADS = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# One thread a library, as there is a process per core; and quiet.
ENVIRONMENT = {**dict.fromkeys(THREADS, "1"), "OPENCV_LOG_LEVEL": "OFF"}
# All that the process gets of this one's environment: passwords stand in the rest.
INHERITED = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHASHSEED", "VIRTUAL_ENV",
    "TESSDATA_PREFIX", "USFMAE_DEBUG", "MALLOC_PERTURB_",
)  # fmt: skip
FIGURES = ("brightness", "region", "changed")
# -P: the folder it is started in holds no modules
COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "usfmae.core.sandbox.child")

UnitResult = tuple[list[ScanResult], list[PackedImage]]
Message = tuple[Answer, bytes]


class ProcessEndedError(Exception):
    """The decoding process crashed, said what it may not say, or had to be ended."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class StoppedError(Exception):
    """The run was stopped (Ctrl-C, a full disk) while this worker was at work."""


class Worker:
    """Runs one thing at a time in its decoding process. Not thread-safe: one thread, one worker."""

    def __init__(self, settings: Settings, secret: bytes) -> None:
        self.settings, self.secret = settings, secret
        self.process: subprocess.Popen[bytes] | None = None
        self.wire: socket.socket | None = None
        self.stopped = False
        self.frames_read = 0  # of the unit at work
        self.inbox = ipc.Inbox()
        self.scratch = ""  # the process's only folder, for Tesseract's program: the check for scattered print runs it

    # The process ----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End the process for good, from another thread; whoever waits for an answer gets StoppedError."""
        self.stopped = True
        if (process := self.process) is not None:
            process.kill()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdout:
                self.process.stdout.close()
            self.process = None
        if self.wire is not None:
            self.wire.close()
            self.wire = None
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.scratch = ""

    def _renew(self) -> None:
        """End a process that has grown; the next request starts another."""
        if self.process is not None and _resident_mib(self.process.pid) > RENEW_MIB:
            self.close()

    def _start(self) -> None:
        quiet = None if os.environ.get("USFMAE_DEBUG") else subprocess.DEVNULL
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ} | ENVIRONMENT
        self.scratch = environment["TMPDIR"] = tempfile.mkdtemp(prefix="usfmae-")
        self.wire, theirs = socket.socketpair()
        self.inbox = ipc.Inbox()
        with theirs:
            self.process = subprocess.Popen(
                COMMAND,
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=quiet,  # libraries' complaints can quote what stands in a file
                env=environment,
                start_new_session=True,
            )
        try:
            self._send(records.Hello(self.settings.model_dump(mode="json"), (self.scratch,) if self.scratch else ()))
            answer, _ = self._next(START_SECONDS)
        except (OSError, ProcessEndedError):
            self.close()
            raise ResourceError(
                "decoding process",
                "does not start",
                "set USFMAE_DEBUG=1 to see why; often too little memory, or a new reader that cannot be imported",
            ) from None
        if isinstance(answer, records.Ready) and not answer.landlock:
            logger.warning("decoding processes can read other files: this kernel offers no Landlock (Linux 5.13)")

    def _send(self, request: Request, descriptor: int | None = None) -> None:
        assert self.wire is not None
        ipc.send_request(self.wire, records.encode(REQUESTS, request), descriptor)

    def _ask(self, request: Request, scans: Sequence[Scan]) -> Iterator[Message]:
        """Answers until `Done`; raises ProcessEndedError where the process dies or is silent for too long.

        `scans` are those of the request, with their places: files that the process asks for are opened here.
        """
        if self.stopped:
            raise StoppedError
        if self.process is None or self.process.poll() is not None:
            self.close()
            self._start()
        limits = self.settings.read
        seconds = limits.decode_seconds
        try:
            self._send(request)
            while True:
                answer, blob = self._next(seconds)
                if isinstance(answer, records.Done):
                    return
                if isinstance(answer, records.Fault):  # the machine lacks something; no scan is to blame
                    raise ResourceError(answer.what, answer.why, answer.do)
                if isinstance(answer, records.Unforeseen):
                    logger.warning("an unforeseen error in a decoding process: %s at %s", answer.kind, answer.at)
                    continue
                if isinstance(answer, records.Open):
                    self._open(answer, scans)
                    continue
                yield answer, blob
                cleaning = isinstance(answer, (records.Kept, records.KeptBack)) or (
                    isinstance(answer, records.Alive) and answer.doing == "cleaning"
                )
                seconds = limits.clean_seconds if cleaning else limits.decode_seconds
        except OSError:
            self._end("crashed")

    def _open(self, wanted: records.Open, scans: Sequence[Scan]) -> None:
        if wanted.scan >= len(scans):
            self._end("bad-answer")
        scan = scans[wanted.scan]
        try:
            descriptor = source.open_file(scan.path, wanted.data_file)
        except (OSError, ValueError) as error:
            self._send(records.Opened(getattr(error, "errno", None) or 22))
            return
        try:
            if scan.stamp and not wanted.data_file and os.fstat(descriptor).st_mtime_ns != scan.stamp:
                self._send(records.Opened(errno.ESTALE))  # another content than was identified: not under its name
            else:
                self._send(records.Opened(), descriptor)
        finally:
            os.close(descriptor)

    def _next(self, seconds: float) -> Message:
        assert self.process is not None and self.process.stdout is not None
        deadline = time.monotonic() + seconds
        descriptor = self.process.stdout.fileno()
        while True:
            try:
                message = self.inbox.next()
                if message is not None:
                    return records.decode(ANSWERS, message[0]), message[1]
            except ValueError:
                self._end("bad-answer")
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

    # What it is asked -----------------------------------------------------------------------------------------

    def identify(self, candidate: Candidate) -> dict[str, Any]:
        """What a file is, for the ledger; never raises for the file's sake."""
        scan = Scan(candidate.path, "", Trail(), candidate.member)
        examined = Examined("quarantined", reason="crashed")
        try:
            for answer, _ in self._ask(records.Identify(handed_over(scan, 0)), [scan]):
                if isinstance(answer, records.Identity):
                    examined = answer.examined
        except ProcessEndedError as error:
            examined = Examined("quarantined", reason=error.reason)
        return self._entry(examined, candidate)

    def _entry(self, examined: Examined, candidate: Candidate) -> dict[str, Any]:
        if examined.outcome == "failed":
            return {"outcome": "failed", "reason": examined.reason}
        scan = named(examined, candidate, self.secret, self.settings.read)
        if scan is None:
            return {"outcome": "none"}
        if isinstance(scan, RefusedScan):
            return {"outcome": "refused", "reason": scan.reason}
        if isinstance(scan, Quarantined):
            return {"outcome": "quarantined", "reason": scan.reason, "detail": scan.detail, "id": scan.trail.id}
        return _scan_entry(scan)

    def members(self, archive: Candidate) -> dict[str, Any]:
        """The members of an archive: {"members": [[name, size], ...], "reason": ...}."""
        scan = Scan(archive.path, "")
        listing: dict[str, Any] = {"members": [], "reason": "crashed"}
        try:
            for answer, _ in self._ask(records.ListMembers(handed_over(scan, 0)), [scan]):
                if isinstance(answer, records.Members):
                    listing = {"members": [list(pair) for pair in answer.members], "reason": answer.reason}
        except ProcessEndedError as error:
            listing["reason"] = error.reason
        return listing

    def process_unit(self, unit: Unit) -> UnitResult:
        """Read and clean a unit. A scan that ends or hangs the process goes to quarantine; the rest is done again."""
        condemned: list[ScanResult] = []
        scans, crashes = list(unit.scans), 0
        while scans:
            try:
                results, images = self._attempt(Unit(tuple(scans), unit.clip))
                self.frames_read = 0
                self._renew()
                return condemned + results, images
            except _CulpritError as error:
                crashes += error.reason == "crashed"
                # A crash may be the machine's fault (out of memory): it gets a second chance, a hang does not.
                if error.reason == "crashed" and crashes == 1:
                    continue
                condemned.append(ScanResult(error.scan, records.Outcome.QUARANTINED, error.reason))
                scans = [scan for scan in scans if scan.trail.id != error.scan]
                crashes = 0
        return condemned, []

    def _attempt(self, unit: Unit) -> UnitResult:
        books = _Books(unit.scans, self.settings.model.image_size)
        handed = Unit(tuple(handed_over(scan, number) for number, scan in enumerate(unit.scans)), unit.clip)
        try:
            for answer, blob in self._ask(records.CleanUnit(handed), unit.scans):
                self.frames_read += isinstance(answer, records.Alive) and answer.doing == "decoding"
                books.enter(answer, blob)
            return books.close()
        except ProcessEndedError as error:
            raise _CulpritError(books.current, error.reason) from None
        except ValueError:
            self.close()
            raise _CulpritError(books.current, "bad-answer") from None

    def show(self, unit: Unit, wanted: str, index: int) -> dict[str, bytes]:
        """PNGs "before", "mask" and "after" of one frame (see preview.py); fewer or none where it cannot be shown."""
        handed = Unit(tuple(handed_over(scan, number) for number, scan in enumerate(unit.scans)), unit.clip)
        pictures: dict[str, bytes] = {}
        try:
            for answer, blob in self._ask(records.ShowFrame(handed, wanted, index), unit.scans):
                if isinstance(answer, records.Picture):
                    pictures[answer.name] = blob
        except ProcessEndedError:
            pass
        return pictures

    def preview(self, scan: Scan, index: int) -> list[tuple[records.Picture | records.NoPicture, bytes]]:
        """One frame "before", "after" and "packed" (see preview.py), or why not. Raises ProcessEndedError."""
        answers = self._ask(records.PreviewFrame(handed_over(scan, 0), index), [scan])
        return [(a, blob) for a, blob in answers if isinstance(a, (records.Picture, records.NoPicture))]


class _Books:
    """What becomes of each scan of a unit, as the answers come in. Every method raises ValueError for a false one."""

    def __init__(self, scans: Sequence[Scan], size: int) -> None:
        self.scans, self.size = scans, size
        self.results = [ScanResult(scan.trail.id) for scan in scans]
        self.met: list[set[int]] = [set() for _ in scans]  # frames with a fate
        self.ended: set[int] = set()
        self.images: list[PackedImage] = []
        self.current = scans[0].trail.id

    def enter(self, answer: Answer, blob: bytes) -> None:
        if not isinstance(answer, (records.Alive, records.Kept, records.KeptBack, records.ScanEnded)):
            raise ValueError("an answer to another question")
        if answer.scan >= len(self.scans) or answer.scan in self.ended:
            raise ValueError("no scan of this unit")
        self.current = self.scans[answer.scan].trail.id
        if isinstance(answer, records.Kept):
            self._kept(answer, blob)
        elif isinstance(answer, records.KeptBack):
            self._meet(answer.scan, answer.index)
            self.results[answer.scan].quarantined.setdefault(answer.reason, []).append(answer.index)
        elif isinstance(answer, records.ScanEnded):
            self._ended(answer)

    def _meet(self, scan: int, index: int) -> None:
        if index in self.met[scan]:
            raise ValueError("a frame twice")
        self.met[scan].add(index)

    def _kept(self, answer: records.Kept, blob: bytes) -> None:
        if answer.shape not in ((self.size, self.size), (self.size, self.size, 3)):
            raise ValueError("an image of another size")
        pixels = np.frombuffer(blob, np.uint8).reshape(answer.shape)
        self._meet(answer.scan, answer.index)
        scan, result = self.scans[answer.scan], self.results[answer.scan]
        id_ = content_id(scan.trail.id, str(answer.index))
        self.images.append(PackedImage(pixels, id_, scan.group, scan.dataset, scan.trail.id, answer.index))
        result.kept += 1
        for name in FIGURES:
            result.figures[name] = result.figures.get(name, 0.0) + float(getattr(answer, name))

    def _ended(self, answer: records.ScanEnded) -> None:
        result = self.results[answer.scan]
        result.outcome, result.reason = answer.outcome.value, answer.reason
        result.frames, result.duplicates = answer.frames, answer.duplicates
        result.notes = list(answer.notes)
        self.ended.add(answer.scan)
        if not result.balanced:
            raise ValueError("frames are missing")

    def close(self) -> UnitResult:
        if len(self.ended) != len(self.scans):
            raise ValueError("a scan without an end")
        for result in self.results:
            result.figures = {name: round(total / result.kept, 4) for name, total in result.figures.items()}
        return self.results, self.images


def _scan_entry(identified: Identified) -> dict[str, Any]:
    """An identified scan as the ledger writes it."""
    return {
        "outcome": "scan",
        "id": identified.scan.trail.id,
        "kind": identified.scan.kind,
        "group": identified.scan.group,
        "study": identified.study,
        "format": identified.facts.format,
        "frames": identified.facts.frames,
        "planned": identified.facts.planned,
        "device": identified.facts.device,
        "notes": list(identified.facts.notes),
    }


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
