"""The leak audit: is an image of a benchmark also in the pretraining corpus, as the same file or as the same picture?

Pictures are compared by a 256-bit perceptual hash of the packed squares, the benchmark's in all eight orientations, so
that re-encoded, resized, brightened, mirrored and turned copies are found. Measured in `docs/results/benchmarks.md`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.errors import SourceError
from usfmae.core.openus46.archive import Entry
from usfmae.core.types import Pixels

THUMBNAIL, SIDE = 64, 16  # of a 64 x 64 thumbnail the 16 x 16 lowest frequencies: 256 bits
ORIENTATIONS = 8
CHUNK = 4096  # corpus images compared at once
Bits = NDArray[np.float32]


@dataclass(frozen=True)
class Leak:
    """A benchmark image that the corpus holds."""

    task: str
    image: str  # of the benchmark
    dataset: str  # of the corpus
    where: str  # file name, or `position N` in the corpus
    distance: int  # bits that differ; -1 for the very same file
    position: int = -1  # in the corpus, where it is packed

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def same_files(task: str, benchmark: Iterable[tuple[str, Entry]], scans: Iterable[tuple[str, Entry]]) -> list[Leak]:
    """Corpus files (data set, entry) with the very bytes of a benchmark image (id, entry). Sizes are compared first."""
    by_size: dict[int, list[tuple[str, Entry]]] = defaultdict(list)
    for id_, entry in benchmark:
        by_size[entry.size].append((id_, entry))
    hashes: dict[int, dict[str, str]] = {}  # size -> hash -> image
    leaks = []
    for dataset, scan in scans:
        if scan.size not in by_size:
            continue
        if scan.size not in hashes:
            hashes[scan.size] = {_sha256(entry): id_ for id_, entry in by_size[scan.size]}
        image = hashes[scan.size].get(_sha256(scan))
        if image is not None:
            leaks.append(Leak(task, image, dataset, scan.name, -1))
    return leaks


def _sha256(entry: Entry) -> str:
    return hashlib.sha256(entry.read()).hexdigest()


def same_pictures(
    task: str, ids: Sequence[str], squares: Pixels, corpus: Corpus, positions: Positions, bits: int
) -> list[Leak]:
    """Corpus images at `positions` within `bits` of a benchmark image; squares (B, S, S, C) uint8."""
    signs = np.stack([_bits(turned) for square in squares for turned in _orientations(square)])  # (8 B, 256)
    leaks = []
    for chunk in _chunks(positions):
        pixels = corpus.fetch(chunk).pixels
        codes = np.stack([_bits(image) for image in pixels])  # (n, 256)
        distances = (codes.shape[1] - codes @ signs.T) / 2  # (n, 8 B)
        near = distances.reshape(len(chunk), len(ids), ORIENTATIONS).min(axis=2)
        for row, column in np.argwhere(near <= bits):
            position = int(chunk[row])
            leaks.append(
                Leak(
                    task,
                    ids[column],
                    corpus.datasets[position],
                    f"position {position}",
                    int(near[row, column]),
                    position,
                )
            )
    return leaks


def _bits(image: Pixels) -> Bits:
    """(256,) of +1 and -1: is each low frequency of the cosine transform above their median? (Zauner 2010, pHash.)"""
    gray = image[..., 0] if image.shape[-1] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:SIDE, :SIDE].copy()
    low[0, 0] = 0  # brightness says nothing
    return np.where(low > np.median(low), 1, -1).astype(np.float32).ravel()


def _orientations(image: Pixels) -> Iterator[Pixels]:
    for quarter in range(4):
        turned = np.ascontiguousarray(np.rot90(image, quarter))
        yield turned
        yield np.ascontiguousarray(turned[:, ::-1])


def _chunks(positions: Positions) -> Iterator[Positions]:
    return (positions[start : start + CHUNK] for start in range(0, len(positions), CHUNK))


def enforce(leaks: Sequence[Leak], positions: Positions, how: str) -> Positions:
    """Positions to train on. `refuse` raises SourceError naming the first leaks; `drop` leaves leaking images out.

    The very same file leaks whatever `how` says: it must be taken out of the corpus.
    """
    files = [leak for leak in leaks if leak.distance < 0]
    if files or (leaks and how == "refuse"):
        named = "; ".join(
            f"{x.image} of {x.task} = {x.where} of {x.dataset or 'the corpus'}" for x in (files or leaks)[:3]
        )
        raise SourceError(
            f"{len(files or leaks)} benchmark image(s) are in the corpus",
            named,
            "take them out of the corpus"
            if files
            else "take them out, or leave them out of training with bench.leaks=drop",
        )
    return positions[~np.isin(positions, [leak.position for leak in leaks])]
