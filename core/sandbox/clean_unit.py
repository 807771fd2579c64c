"""Inside the decoding process: the frames of a unit are read, cleaned and answered one by one.

Every frame that is met ends in exactly one count: kept, kept back, or a near-duplicate. The worker checks it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from usfmae.core.config import Settings
from usfmae.core.errors import ConfigError, ResourceError
from usfmae.core.read import RefusedScan, Unreadable, read
from usfmae.core.sandbox.records import (
    Alive,
    Answer,
    CleanUnit,
    Done,
    Kept,
    KeptBack,
    Outcome,
    ScanEnded,
    Unforeseen,
    number_of,
)
from usfmae.core.types import CleanImage, Frame, Pixels, Quarantined, Scan, Trail, content_id

SIDE = 16  # 16 x 16 comparisons: 256 bits


def difference_hash(pixels: Pixels) -> int:
    """256 bits: is each cell of a 16 x 17 thumbnail darker than its right neighbour? (Krawetz's dHash.)"""
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


class Seen:
    """Hashes of the frames of one scan."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.hashes: list[int] = []

    def is_duplicate(self, pixels: Pixels) -> bool:
        """True where an earlier frame differs in fewer than `bits` bits; else the frame is remembered."""
        if self.bits == 0:
            return False
        code = difference_hash(pixels)
        if any((code ^ other).bit_count() < self.bits for other in self.hashes):
            return True
        self.hashes.append(code)
        return False


Emit = Callable[..., None]  # answer(record, bytes)


@dataclass
class OpenScan:
    """One scan of a unit while its frames pass through."""

    scan: Scan
    frames: int = 0
    duplicates: int = 0
    outcome: Outcome = Outcome.READ
    reason: str = ""
    notes: set[str] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)  # frame -> why it could not be decoded

    @property
    def number(self) -> int:
        return number_of(self.scan)

    def ended(self) -> ScanEnded:
        frames = self.frames + len(self.failed)
        return ScanEnded(self.number, self.outcome, self.reason, frames, self.duplicates, tuple(sorted(self.notes)))


CORE = Path(__file__).parents[1]


def unforeseen(error: Exception) -> Unforeseen:
    """For the log: what would else hide behind `cleaning-failed`."""
    places = [(Path(frame.filename), frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    path, line = next((place for place in reversed(places) if place[0].is_relative_to(CORE)), (Path(__file__), 0))
    return Unforeseen(type(error).__name__, f"{path.relative_to(CORE.parent)}:{line}")


Sent = list[tuple[OpenScan, Trail, int]]  # of each frame that went to cleaning: its scan, its trail, its index


def run_unit(request: CleanUnit, settings: Settings, answer: Emit) -> None:
    """A clip, a still, or the stills of one study: read, clean, answer frame by frame."""
    scans = [OpenScan(scan) for scan in request.unit.scans]
    sent: Sent = []
    together = len(scans) > 1 or request.unit.clip
    done = 0
    for result in cleaned(frames_of(scans, sent, settings, answer), settings, together, answer):
        _settle(result, sent[done], settings, answer)
        done += 1
    for owner, _, index in sent[done:]:  # went to cleaning and never came back
        answer(KeptBack(owner.number, index, "cleaning-failed"))
    for one in scans:
        for index, reason in one.failed.items():
            answer(KeptBack(one.number, index, reason))
        answer(one.ended())
    answer(Done())


def _settle(
    result: CleanImage | Quarantined, sent: tuple[OpenScan, Trail, int], settings: Settings, answer: Emit
) -> None:
    from usfmae.core.clean import cut_to_scan
    from usfmae.core.corpus.shard import square

    owner, trail, index = sent
    if isinstance(result, Quarantined):
        answer(KeptBack(owner.number, index, result.reason))
        return
    try:
        augment = settings.train.augment
        named = cut_to_scan(replace(result, trail=trail), settings.clean)
        packed = square(named, settings.model.image_size, "", "", augment.resize, augment.aspect)
        image = Kept(owner.number, index, packed.pixels.shape, *_figures(result))
    except Exception as error:
        answer(unforeseen(error))
        answer(KeptBack(owner.number, index, "packing-failed"))
        return
    answer(image, packed.pixels.tobytes())


def _figures(image: CleanImage) -> tuple[float, float, float]:
    """Mean brightness of what is not black (0-255), the scan region's and the changed pixels' share of the frame."""
    lit = image.pixels.max(2) > 0
    brightness = float(image.pixels[lit].mean()) if lit.any() else 0.0
    return brightness, float(image.notes.get("region", lit.mean())), float(image.mask.mean())


def frames_of(scans: Sequence[OpenScan], sent: Sent, settings: Settings, answer: Emit) -> Iterator[Frame]:
    """The frames of all scans of a unit, without near-duplicates; each is noted in `sent` before it goes on.

    An error ends its own scan only: the frames before it stay good.
    """
    bits = 0 if settings.clean.profile == "paper" else settings.read.duplicate_bits
    for one in scans:
        answer(Alive("decoding", one.number))
        try:
            yield from _frames_of_one(one, sent, settings, bits, answer)
        except Unreadable as error:
            one.outcome, one.reason = Outcome.QUARANTINED, error.reason
        except RefusedScan as error:
            one.outcome, one.reason = Outcome.REFUSED, error.reason
        except MemoryError:
            one.outcome, one.reason = Outcome.QUARANTINED, "too-much-memory"
        except OSError as error:
            one.outcome, one.reason = Outcome.FAILED, f"os-{error.errno}"
        except (ResourceError, ConfigError):
            raise
        except Exception as error:
            answer(unforeseen(error))
            one.outcome, one.reason = Outcome.QUARANTINED, "reading-failed"
    answer(Alive("cleaning", scans[-1].number))


def _frames_of_one(one: OpenScan, sent: Sent, settings: Settings, bits: int, answer: Emit) -> Iterator[Frame]:
    seen = Seen(bits)
    for frame in read(one.scan, settings.read, one.notes, one.failed):
        try:
            duplicate = seen.is_duplicate(frame.pixels)
        except Exception as error:  # out of memory too: this frame, and reading goes on
            answer(unforeseen(error))
            one.failed[frame.index] = "reading-failed"
            continue
        one.frames += 1
        if duplicate:
            one.duplicates += 1
            continue
        trail = one.scan.trail.child(content_id(one.scan.trail.id, str(frame.index)))
        sent.append((one, trail, frame.index))
        answer(Alive("cleaning", one.number))
        yield replace(frame, trail=trail)
        answer(Alive("decoding", one.number))


def cleaned(
    frames: Iterator[Frame], settings: Settings, together: bool, answer: Callable[[Answer], None]
) -> Iterator[CleanImage | Quarantined]:
    """One result per frame, in order, and signs of life in between while a clip's frames are worked on together.

    An unforeseen error keeps frames back; a missing program is no such error.
    """
    if together and settings.clean.profile == "safe":
        yield from _cleaned_together(frames, settings, answer)
        return
    from usfmae.core import clean

    for frame in frames:
        try:
            result: CleanImage | Quarantined = clean.clean(frame, settings.clean)
        except (ResourceError, ConfigError):
            raise
        except Exception as error:
            answer(unforeseen(error))
            result = _given_up(frame.trail, error)
        yield result


def _cleaned_together(
    frames: Iterator[Frame], settings: Settings, answer: Callable[[Answer], None]
) -> Iterator[CleanImage | Quarantined]:
    from usfmae.core import clean

    given: list[Trail] = []

    def counted() -> Iterator[Frame]:
        for frame in frames:
            given.append(frame.trail)
            yield frame

    done = 0
    try:
        for result in clean.clean_clip(counted(), settings.clean, lambda: answer(Alive("cleaning", 0))):
            done += 1
            yield result
    except (ResourceError, ConfigError):
        raise
    except Exception as error:
        answer(unforeseen(error))
        # What the static overlay was to be found on is not trusted singly either.
        yield from (_given_up(trail, error) for trail in given[done:])
        for frame in frames:
            yield _given_up(frame.trail, error)


def _given_up(trail: Trail, error: Exception) -> Quarantined:
    reason = "too-much-memory" if isinstance(error, MemoryError) else "cleaning-failed"
    return Quarantined(reason, trail, type(error).__name__)
