"""Take images out of a corpus for good: single ones, or all of a patient. `prepare` lets none of them in again.

What is withdrawn is noted first (`CORPUS/withdrawn.json`, hashes alone), then each shard that holds such an image is
written anew without it under another name, and removed: a withdrawal that was cut short is finished by another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from usfmae.core.corpus.shard import FOLDER, Index, PackedImage, open_pixels, read_index, write_shard
from usfmae.core.files import write_atomic
from usfmae.core.prepare.ledger import CorpusLedger
from usfmae.core.prepare.ledger_file import read_object
from usfmae.core.sandbox.records import ScanResult

FILE = "withdrawn.json"  # inside a corpus
REASON = "withdrawn"


@dataclass(frozen=True)
class Withdrawn:
    """What must not be in a corpus: patients (groups of the corpus), and single images by their ids."""

    groups: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()

    @classmethod
    def of(cls, corpus: Path) -> Withdrawn:
        """What was withdrawn from a corpus so far."""
        if not (corpus / FILE).exists():
            return cls()
        noted = read_object(corpus / FILE)
        return cls(frozenset(noted.get("groups", ())), frozenset(noted.get("images", ())))

    def __or__(self, other: Withdrawn) -> Withdrawn:
        return Withdrawn(self.groups | other.groups, self.images | other.images)

    def write(self, corpus: Path) -> None:
        text = json.dumps({"groups": sorted(self.groups), "images": sorted(self.images)}, indent=1)
        write_atomic(corpus / FILE, text.encode())

    def rows(self, index: Index) -> list[int]:
        """Which images of a shard are withdrawn."""
        pairs = zip(index.ids, index.groups, strict=True)
        return [row for row, (id_, group) in enumerate(pairs) if id_ in self.images or group in self.groups]


def found(corpus: Path, asked: Withdrawn) -> int:
    """Images of a corpus that a withdrawal would take out."""
    return sum(len(asked.rows(read_index(path))) for path in _indexes(corpus))


def withdraw(corpus: Path, asked: Withdrawn) -> int:
    """Take images out; how many there were. TryLaterError while `prepare` is at work."""
    ledger, count = CorpusLedger(corpus), 0
    with ledger.working(), ledger.writing():
        (asked | Withdrawn.of(corpus)).write(corpus)
        for path in _indexes(corpus):
            index = read_index(path)
            if gone := asked.rows(index):
                count += len(gone)
                _written_anew(ledger, path, index, gone)
        for group in sorted(asked.groups):
            ledger.refuse_group(group, REASON)
    return count


def _indexes(corpus: Path) -> list[Path]:
    return sorted((corpus / FOLDER).glob("*.json"))


def _written_anew(ledger: CorpusLedger, path: Path, index: Index, gone: Sequence[int]) -> None:
    """A shard without some of its images, under a name that says which are left; the ledger knows before it goes."""
    kept = [row for row in range(index.shard.count) if row not in set(gone)]
    task, kind = path.stem.split(".")[0], path.stem.split(".")[-1]
    name = f"{task}.{hashlib.sha256(repr((index.sha256, kept)).encode()).hexdigest()[:8]}"
    pixels = open_pixels(index)
    write_shard(
        ledger.corpus,
        name,
        [PackedImage(pixels[row].copy(), index.ids[row], index.groups[row], index.datasets[row]) for row in kept],
    )
    ledger.replace_shard(f"{path.stem}.npy", f"{name}.{kind}.npy", kept, REASON)
    ledger.save()
    path.unlink()
    for rest in (".npy", ".checked"):
        path.with_suffix(rest).unlink(missing_ok=True)


def without(
    withdrawn: Withdrawn, results: Sequence[ScanResult], images: Sequence[PackedImage]
) -> tuple[list[ScanResult], list[PackedImage]]:
    """What a task that is done again may keep: an image that was taken out counts as kept back."""
    out: dict[str, list[int]] = {}
    for image in images:
        if image.id in withdrawn.images:
            out.setdefault(image.scan, []).append(image.frame)
    return [_less(result, out.get(result.id, ())) for result in results], [
        image for image in images if image.id not in withdrawn.images
    ]


def _less(result: ScanResult, frames: Collection[int]) -> ScanResult:
    if not frames:
        return result
    held = {**result.quarantined, REASON: sorted(frames)}
    return replace(result, kept=result.kept - len(frames), quarantined=held)
