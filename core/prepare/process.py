"""The decoding process: `python -m usfmae.core.prepare.process`, told what to do on stdin, answering on stdout.

Untrusted files are opened here and nowhere else: with a memory limit, one thread per library, no stderr, and a
supervisor that ends the process where the next frame takes too long.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from usfmae.core.config import Settings
from usfmae.core.flow import CleanImage, Frame, Quarantined, Scan, Trail, content_id
from usfmae.core.prepare.wire import receive, send
from usfmae.core.read.reader import READERS, reader

Emit = Callable[..., None]


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
    for kind in READERS:
        reader(kind)  # imported before the first file's clock runs
    emit(event="ready")
    work = {"identify": _identify, "members": _members, "unit": _unit}
    while (message := receive(sys.stdin.buffer)) is not None:
        work[message[0]["do"]](message[0], settings, secret, emit)


def _identify(header: dict[str, Any], settings: Settings, secret: bytes, emit: Emit) -> None:
    """One candidate -> what it is."""
    from usfmae.core.read.discover import Candidate, Identified, identify
    from usfmae.core.read.reasons import Refused

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
    elif isinstance(found, Refused):
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
    from usfmae.core.read.reasons import Unreadable

    try:
        emit(event="done", members=members(Path(header["path"]), settings.read))
    except Unreadable as error:
        emit(event="done", members=[], reason=error.reason)


@dataclass
class _Scan:
    """One scan of a unit while its frames pass through."""

    scan: Scan
    frames: int = 0
    duplicates: int = 0
    outcome: str = "read"
    reason: str = ""
    notes: set[str] = field(default_factory=set)


def _unit(header: dict[str, Any], settings: Settings, secret: bytes, emit: Emit) -> None:
    """A clip, a still, or the stills of one study: read, clean, answer frame by frame."""
    from usfmae.core.corpus.shard import square

    scans = [_Scan(_scan(values)) for values in header["scans"]]
    sent: list[tuple[_Scan, Frame]] = []
    together = len(scans) > 1 or bool(header["clip"])
    for number, result in enumerate(_cleaned(_frames(scans, sent, settings, emit), settings, together)):
        owner, frame = sent[number]
        if isinstance(result, Quarantined):
            emit(event="quarantined", scan=owner.scan.trail.id, index=frame.index, reason=result.reason)
            continue
        named = replace(result, trail=frame.trail)
        packed = square(named, settings.model.image_size, owner.scan.group, owner.scan.dataset)
        emit(
            packed.pixels.tobytes(),
            event="image",
            scan=owner.scan.trail.id,
            index=frame.index,
            id=packed.id,
            shape=packed.pixels.shape,
        )
    for one in scans:
        emit(
            event="scan",
            scan=one.scan.trail.id,
            outcome=one.outcome,
            reason=one.reason,
            frames=one.frames,
            duplicates=one.duplicates,
            notes=sorted(one.notes),
        )
    emit(event="done")


def _scan(values: dict[str, Any]) -> Scan:
    return Scan(
        Path(values["path"]), values["kind"], Trail(values["id"]), values["member"], values["group"], values["dataset"]
    )


def _frames(scans: Sequence[_Scan], sent: list[tuple[_Scan, Frame]], settings: Settings, emit: Emit) -> Iterator[Frame]:
    """The frames of all scans of a unit, without near-duplicates; each is noted in `sent` before it goes on.

    An error ends its own scan only: the frames before it stay good.
    """
    from usfmae.core.read import Refused, Unreadable, read
    from usfmae.core.read.duplicates import Seen

    bits = 0 if settings.clean.profile == "paper" else settings.read.duplicate_bits
    for one in scans:
        seen = Seen(bits)
        emit(event="decoding", scan=one.scan.trail.id)
        try:
            for frame in read(one.scan, settings.read, one.notes):
                one.frames += 1
                if seen.is_duplicate(frame.pixels):
                    one.duplicates += 1
                    continue
                named = replace(frame, trail=one.scan.trail.child(content_id(one.scan.trail.id, str(frame.index))))
                sent.append((one, replace(named, pixels=frame.pixels[:0])))  # the pixels are not kept
                emit(event="cleaning", scan=one.scan.trail.id)
                yield named
                emit(event="decoding", scan=one.scan.trail.id)
        except Unreadable as error:
            one.outcome, one.reason = "quarantined", error.reason
        except Refused as error:
            one.outcome, one.reason = "refused", error.reason
        except MemoryError:
            one.outcome, one.reason = "quarantined", "too-much-memory"
        except OSError as error:
            one.outcome, one.reason = "failed", f"os-{error.errno}"
    emit(event="cleaning", scan=scans[-1].scan.trail.id)


def _cleaned(frames: Iterator[Frame], settings: Settings, together: bool) -> Iterator[CleanImage | Quarantined]:
    """One result per frame, in order; an unforeseen error keeps the frame back."""
    from usfmae.core.clean import clean, clean_clip

    if together and settings.clean.profile == "safe":
        yield from clean_clip(frames, settings.clean)
        return
    for frame in frames:
        try:
            yield clean(frame, settings.clean)
        except Exception as error:
            yield Quarantined("cleaning-failed", frame.trail, type(error).__name__)


if __name__ == "__main__":
    main()
