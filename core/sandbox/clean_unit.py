"""Inside the decoding process: the frames of a unit are read, cleaned and answered one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from usfmae.core.config import Settings
from usfmae.core.errors import ConfigError, ResourceError
from usfmae.core.types import CleanImage, Frame, Quarantined, Scan, Trail, content_id

Emit = Callable[..., None]


@dataclass
class OneScan:
    """One scan of a unit while its frames pass through."""

    scan: Scan
    frames: int = 0
    duplicates: int = 0
    outcome: str = "read"
    reason: str = ""
    notes: set[str] = field(default_factory=set)


def run_unit(header: dict[str, Any], settings: Settings, secret: bytes, emit: Emit) -> None:
    """A clip, a still, or the stills of one study: read, clean, answer frame by frame."""
    from usfmae.core.corpus.shard import square

    scans = [OneScan(scan_of(values)) for values in header["scans"]]
    sent: list[tuple[OneScan, Frame]] = []
    together = len(scans) > 1 or bool(header["clip"])
    for number, result in enumerate(cleaned(frames_of(scans, sent, settings, emit), settings, together, emit)):
        owner, frame = sent[number]
        if isinstance(result, Quarantined):
            emit(event="quarantined", scan=owner.scan.trail.id, index=frame.index, reason=result.reason)
            continue
        named = replace(result, trail=frame.trail)
        augment = settings.train.augment
        packed = square(
            named, settings.model.image_size, owner.scan.group, owner.scan.dataset, augment.resize, augment.aspect
        )
        emit(
            packed.pixels.tobytes(),
            event="image",
            scan=owner.scan.trail.id,
            index=frame.index,
            id=packed.id,
            shape=packed.pixels.shape,
            **_figures(result),
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


def _figures(image: CleanImage) -> dict[str, float]:
    """Mean brightness of what is not black (0-255), the scan region's and the changed pixels' share of the frame."""
    lit = image.pixels.max(2) > 0
    return {
        "brightness": float(image.pixels[lit].mean()) if lit.any() else 0.0,
        "region": float(image.notes.get("region", lit.mean())),
        "changed": float(image.mask.mean()),
    }


def scan_of(values: dict[str, Any]) -> Scan:
    return Scan(
        Path(values["path"]), values["kind"], Trail(values["id"]), values["member"], values["group"], values["dataset"]
    )


def frames_of(
    scans: Sequence[OneScan], sent: list[tuple[OneScan, Frame]], settings: Settings, emit: Emit
) -> Iterator[Frame]:
    """The frames of all scans of a unit, without near-duplicates; each is noted in `sent` before it goes on.

    An error ends its own scan only: the frames before it stay good.
    """
    from usfmae.core.read import RefusedScan, Unreadable, read
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
        except RefusedScan as error:
            one.outcome, one.reason = "refused", error.reason
        except MemoryError:
            one.outcome, one.reason = "quarantined", "too-much-memory"
        except OSError as error:
            one.outcome, one.reason = "failed", f"os-{error.errno}"
    emit(event="cleaning", scan=scans[-1].scan.trail.id)


def cleaned(
    frames: Iterator[Frame], settings: Settings, together: bool, emit: Emit
) -> Iterator[CleanImage | Quarantined]:
    """One result per frame, in order, and signs of life in between while a clip's frames are worked on together.

    An unforeseen error keeps frames back; a missing program is no such error.
    """
    from usfmae.core.clean import clean, clean_clip

    given: list[Trail] = []

    def counted() -> Iterator[Frame]:
        for frame in frames:
            given.append(frame.trail)
            yield frame

    done = 0
    try:
        if together and settings.clean.profile == "safe":
            results = clean_clip(counted(), settings.clean, lambda: emit(event="cleaning"))
        else:
            results = (clean(frame, settings.clean) for frame in counted())
        for result in results:
            done += 1
            yield result
    except (ResourceError, ConfigError):
        raise
    except Exception as error:
        reason = "too-much-memory" if isinstance(error, MemoryError) else "cleaning-failed"
        for trail in given[done:]:
            yield Quarantined(reason, trail, type(error).__name__)
        if together:  # what the static overlay was to be found on is not trusted singly either
            yield from (Quarantined(reason, frame.trail, type(error).__name__) for frame in frames)
        else:
            yield from cleaned(frames, settings, together, emit)
