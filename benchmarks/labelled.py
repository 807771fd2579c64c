"""Scores cleaning on real overlays: pictures of the data pack in which a person labelled what is burnt in (`truth/`).

`clean.py` runs this beside its drawn parts. The data sets are dealt to two halves: on those of `tuning` rules were worked
out and looked at, on those of `scoring` nobody tuned on the labelled pictures. A shape is *left* where a quarter of its
contrast to its surroundings still stands in the cleaned picture, which no choice of reading program changes. Ink is
what stands out of a shape's surroundings by half of its strongest contrast.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from usfmae.core.annotate import LabelledPicture, Mark, Shape, Truth
from usfmae.core.clean import clean
from usfmae.core.config.clean import CleanSettings
from usfmae.core.config.read import ReadSettings
from usfmae.core.read import discover, read
from usfmae.core.types import CleanImage, Pixels, Scan

TRUTH = Path(__file__).parent / "truth"
HALVES = {
    "tuning": ("mmotu_2d", "covid_blues", "dicom_us"),
    "scoring": ("bus_bra", "hc18", "fast_u_net"),
}
KINDS = {  # what the targets speak of
    "words": (Mark.IDENTIFIER, Mark.TEXT),
    "digits": (Mark.DIGITS,),
    "graphics": (Mark.CALIPER, Mark.ARROW, Mark.RULER, Mark.BAR, Mark.BODY_MARKER, Mark.OTHER),
    "faces": (Mark.FACE,),
}
LEFT = 0.25  # share of a shape's contrast from which it is left
FAINTEST = 3  # gray levels above the surroundings from which a pixel can be ink
AROUND = 21  # pixels over which the surroundings are the median
MARGIN = 5  # pixels around a shape in which a change is no harm
READ = ReadSettings(fps=1000)  # every frame of a clip

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Labelled:
    """A labelled picture of a data set."""

    dataset: str
    picture: LabelledPicture

    @property
    def key(self) -> str:
        """Changes with the picture and its labels, so that a stored row of older labels is not taken."""
        record = f"{self.dataset} {self.picture.model_dump_json()}"
        return hashlib.sha256(record.encode()).hexdigest()[:16]

    def pixels(self, root: Path) -> Pixels:
        """(H, W, 3) RGB. SystemExit where the file is not the one that was labelled."""
        path = root / self.dataset / self.picture.name
        if hashlib.sha256(path.read_bytes()).hexdigest() != self.picture.sha256:
            raise SystemExit(f"{path}: not the picture that was labelled")
        (scan,) = (scan for scan in discover([path], b"labels", READ) if isinstance(scan, Scan))
        return next(frame.pixels for frame in read(scan, READ) if frame.index == self.picture.frame)


@dataclass
class Row:
    """What became of one picture."""

    key: str
    dataset: str
    kept_back: str = ""  # the reason, "" where it was kept
    shapes: Counter[str] = field(default_factory=Counter)  # by label, of a kept picture
    left: Counter[str] = field(default_factory=Counter)
    ink: Counter[str] = field(default_factory=Counter)  # pixels
    removed: Counter[str] = field(default_factory=Counter)
    harmed: float = 0.0  # share of the tissue outside all shapes that was changed


def pictures(half: str, limit: int | None = None) -> list[Labelled]:
    """Every labelled picture of a half that is done; at most `limit`, the data sets in turn."""
    queues = [
        [Labelled(name, picture) for picture in Truth.load(TRUTH / f"{name}.json").pictures if picture.done]
        for name in HALVES[half]
        if (TRUTH / f"{name}.json").exists()
    ]
    in_turn = [queue[i] for i in range(max(map(len, queues), default=0)) for queue in queues if i < len(queue)]
    return in_turn[:limit]


def contrast(pixels: Pixels) -> NDArray[np.float32]:
    """How far each pixel stands out of the median of its surroundings, by channel (H, W, 3)."""
    return pixels.astype(np.float32) - cv2.medianBlur(pixels, AROUND)


def ink_of(signal: NDArray[np.float32], shape: Mask) -> Mask:
    """The pixels (H, W) of a shape that are ink, by the contrast of the picture as it was."""
    strength = np.abs(signal).max(2)
    if not shape.any():
        return shape
    return shape & (strength >= max(FAINTEST, 0.5 * float(np.percentile(strength[shape], 98))))


def left_of(before: NDArray[np.float32], after: NDArray[np.float32], ink: Mask) -> float:
    """Share of the ink's contrast that still stands: 1 where nothing was done, 0 where it is gone."""
    signal, rest = before[ink], after[ink]
    return float((signal * rest).sum() / max(1e-6, (signal * signal).sum()))


def tissue_of(pixels: Pixels) -> Mask:
    """Pixels clearly above the screen's own dark level (0 on most devices)."""
    gray = pixels.max(2)
    counts = np.bincount(gray.ravel(), minlength=256)[:32]
    level = int(counts.argmax()) if counts.max() > 0.03 * gray.size else 0
    return np.asarray(gray > level + FAINTEST)


def scored(one: Labelled, pixels: Pixels, result: CleanImage | None, reason: str = "") -> Row:
    """Book one picture (H, W, 3); `result` None: kept back."""
    row = Row(one.key, one.dataset, kept_back=reason)
    if result is None:
        return row
    before, after = contrast(pixels), contrast(result.pixels)
    height, width = pixels.shape[:2]
    covered = np.zeros((height, width), np.uint8)
    for shape in one.picture.shapes:
        _book(row, shape, (before, after, result.mask))
        covered |= shape.mask(height, width)
    near = cv2.dilate(covered, np.ones((2 * MARGIN + 1,) * 2, np.uint8)) > 0
    tissue = tissue_of(pixels) & ~near
    row.harmed = float((tissue & result.mask).sum() / max(1, tissue.sum()))
    return row


def _book(row: Row, shape: Shape, seen: tuple[NDArray[np.float32], NDArray[np.float32], Mask]) -> None:
    before, after, changed = seen
    ink = ink_of(before, shape.mask(*before.shape[:2]))
    row.shapes[shape.label] += 1
    row.left[shape.label] += left_of(before, after, ink) >= LEFT
    row.ink[shape.label] += int(ink.sum())
    row.removed[shape.label] += int((ink & changed).sum())


def row_of(one: Labelled, root: Path, profile: str) -> Row:
    """Clean one picture and score it; in a worker."""
    cv2.setNumThreads(1)
    pixels = one.pixels(root)
    result = clean(pixels, CleanSettings(profile=profile))
    if isinstance(result, CleanImage):
        return scored(one, pixels, result)
    return scored(one, pixels, None, result.reason)


def rows(root: Path, file: Path, profile: str, wanted: Sequence[Labelled], workers: int = 1) -> list[Row]:
    """A row for each picture. Those that stand in `file` are not computed again; new ones are added to it at once."""
    stored = {row.key: row for row in _stored(file)}
    missing = [one for one in wanted if one.key not in stored]
    work = partial(row_of, root=root, profile=profile)
    # new processes, never a fork: a lock that a thread of ours holds would stay locked in it for ever
    some = ProcessPoolExecutor(workers, get_context("spawn")) if workers > 1 else nullcontext()
    with file.open("a") as stream, some as pool:
        for row in pool.map(work, missing) if pool else map(work, missing):
            stored[row.key] = row
            stream.write(json.dumps(vars(row)) + "\n")
            stream.flush()
    return [stored[one.key] for one in wanted]


def _stored(file: Path) -> Iterator[Row]:
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            row = Row(**json.loads(line))
        except (ValueError, TypeError):
            continue  # cut off while it was written
        for name in ("shapes", "left", "ink", "removed"):
            setattr(row, name, Counter(getattr(row, name)))
        yield row


def table(of: Sequence[Row]) -> dict[str, Any]:
    """The figures of one half and profile, all data sets together and each alone."""
    by_set: dict[str, list[Row]] = defaultdict(list)
    for row in of:
        by_set[row.dataset].append(row)
    whole = _figures(of)
    return {**whole, "datasets": {name: _figures(some) for name, some in by_set.items()}} if of else {"pictures": 0}


def _figures(of: Sequence[Row]) -> dict[str, Any]:
    kept = [row for row in of if not row.kept_back]
    shapes, left, ink, removed = (
        sum((getattr(row, name) for row in kept), Counter[str]()) for name in ("shapes", "left", "ink", "removed")
    )
    harmed = [row.harmed for row in kept]
    return {
        "pictures": len(of),
        "kept_back": round(1 - len(kept) / len(of), 4),
        "reasons": dict(Counter(row.kept_back for row in of if row.kept_back)),
        "left": {kind: {"shapes": sum(shapes[m] for m in marks), "left": sum(left[m] for m in marks),
                        "pictures": sum(any(row.left[m] for m in marks) for row in kept)}
                 for kind, marks in KINDS.items()},
        "left_by_label": {str(m): f"{left[m]} of {shapes[m]}" for m in Mark if shapes[m]},
        "recall": {str(m): round(removed[m] / ink[m], 4) for m in Mark if ink[m]},
        "tissue_changed_mean": round(100 * statistics.mean(harmed), 4) if harmed else None,
        "tissue_changed_worst": round(100 * max(harmed), 4) if harmed else None,
    }  # fmt: skip


def real_tables(root: Path, folder: Path, halves: Sequence[str], profiles: Sequence[str], limit: int | None,
                workers: int = 0) -> dict[str, Any]:  # fmt: skip
    """Half -> profile -> figures, of the pictures that were labelled by eye."""
    folder.mkdir(parents=True, exist_ok=True)
    workers = workers or os.cpu_count() or 1
    return {
        half: {
            profile: table(rows(root, folder / f"real-{profile}.jsonl", profile, pictures(half, limit), workers))
            for profile in profiles
        }
        for half in halves
    }
