"""What the machine kept back, and a person's decision on it: release into the corpus, or drop.

Nothing in quarantine is copied: an entry is a scan's HMAC, a frame's number and a reason. The picture is read from
the source again when somebody looks, and never stored. Decisions lie in `SITE/decisions.jsonl`.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from usfmae.client.review.frame_preview import FramePreview, image_id, preview_frame
from usfmae.client.review.scan_lookup import scan_of
from usfmae.client.site import Site
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.errors import UsageError
from usfmae.core.types import content_id

Decision = Literal["released", "dropped"]
WHOLE = -1  # index of an entry that is a whole scan


@dataclass(frozen=True)
class QuarantinedFrame:
    """One entry of the quarantine."""

    scan: str
    index: int  # frame, or WHOLE
    reason: str

    @property
    def id(self) -> str:
        return content_id(self.scan, str(self.index))[:16]


@dataclass
class Intake:
    """What came in so far, read from the corpus' ledger; finished tasks never change, so each is read once."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    held: dict[str, QuarantinedFrame] = field(default_factory=dict)
    _read: set[str] = field(default_factory=set)
    _places: tuple[int, int] = (0, 0)  # size read so far, scans kept back whole
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def refresh(self, corpus: Path) -> Intake:
        with self._lock:
            for file in sorted((corpus / "ledger" / "tasks").glob("*.json")):
                if file.name not in self._read:
                    self._task(json.loads(file.read_bytes()))
                    self._read.add(file.name)
            self._unreadable(corpus / "ledger" / "places.jsonl")
        return self

    def _task(self, task: dict[str, Any]) -> None:
        for scan in task["scans"]:
            self.counts.update(scans=1, frames=scan["frames"], kept=scan["kept"], duplicates=scan["duplicates"])
            if scan["outcome"] in ("refused", "failed"):
                self.counts[scan["outcome"]] += 1
                self.reasons[scan["reason"]] += 1
            if scan["outcome"] == "quarantined":
                self._hold(QuarantinedFrame(scan["id"], WHOLE, scan["reason"]))
            for reason, indices in scan["quarantined"].items():
                for index in indices:
                    self._hold(QuarantinedFrame(scan["id"], index, reason))

    def _unreadable(self, places: Path) -> None:
        """Scans that could not even be identified; the file only grows."""
        start = self._places[0]
        if not places.exists() or places.stat().st_size <= start:
            return
        with places.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                start += len(line)
                entry = json.loads(line)
                if entry.get("outcome") == "quarantined":
                    self.counts["scans"] += 1
                    self._hold(
                        QuarantinedFrame(entry.get("id") or entry["place"], WHOLE, entry.get("reason", "unreadable"))
                    )
                elif entry.get("outcome") == "refused":
                    self.counts.update(scans=1, refused=1)
                    self.reasons[entry.get("reason", "refused")] += 1
        self._places = (start, 0)

    def _hold(self, held: QuarantinedFrame) -> None:
        if held.id not in self.held:
            self.counts["quarantined"] += 1
            self.reasons[held.reason] += 1
        self.held[held.id] = held


def decisions(site: Site) -> dict[str, dict[str, Any]]:
    """Entry id -> the decision on it."""
    file = site.root / "decisions.jsonl"
    found = {}
    if file.exists():
        for line in file.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # torn by a crash: not decided
            found[entry["id"]] = entry
    return found


def waiting(site: Site, intake: Intake) -> list[QuarantinedFrame]:
    """Entries nobody has decided on, by reason."""
    done = decisions(site)
    return sorted((h for h in intake.held.values() if h.id not in done), key=lambda h: (h.reason, h.scan, h.index))


def picture(site: Site, held: QuarantinedFrame) -> FramePreview:
    """The frame before and after. SourceError where the source no longer has it or it cannot be decoded."""
    settings = site.settings
    index = 0 if held.index == WHOLE else held.index
    return preview_frame(scan_of(site, held.scan), index, settings.read, settings.clean, settings.image_size)


def release(site: Site, held: QuarantinedFrame, by: str = "") -> None:
    """Put a frame into the corpus although the machine doubted it. UsageError where that cannot be."""
    if held.index == WHOLE:
        raise UsageError("this scan", "could not be read at all", "mend it at the source, or drop it")
    _undecided(site, held)
    looked = picture(site, held)
    if not looked.packed:
        raise UsageError("this frame", f"gives nothing to keep ({looked.why_not})", "drop it")
    pixels = np.frombuffer(looked.packed, np.uint8).reshape(looked.shape)
    item = PackedImage(pixels, image_id(held.scan, held.index), scan_of(site, held.scan).group)
    write_shard(site.corpus, f"released-{held.id}", [item])
    _decide(site, held, "released", by)


def drop(site: Site, held: QuarantinedFrame, by: str = "") -> None:
    """Leave a frame or scan out for good."""
    _undecided(site, held)
    _decide(site, held, "dropped", by)


def _undecided(site: Site, held: QuarantinedFrame) -> None:
    known = decisions(site).get(held.id)
    if known:
        raise UsageError("this entry", f"was {known['decision']} already", "nothing to do")


def _decide(site: Site, held: QuarantinedFrame, decision: Decision, by: str) -> None:
    entry = {"id": held.id, "decision": decision, "reason": held.reason, "by": by or _person(), "time": time.time()}
    handle = os.open(site.root / "decisions.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(handle, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(entry, sort_keys=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    site.note(f"quarantine.{decision}", entry=held.id, reason=held.reason, by=entry["by"])


def _person() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def find(intake: Intake, id_: str) -> QuarantinedFrame:
    """The entry of this id. UsageError where there is none."""
    held = intake.held.get(id_)
    if held is None:
        raise UsageError(f"quarantine entry {id_!r:.40}", "does not exist", "see the list")
    return held
