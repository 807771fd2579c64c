"""A corpus: every shard below one or more roots, read as one sequence of images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from usfmae.core.corpus.shard import FOLDER, check, open_pixels, read_index
from usfmae.core.errors import CorpusError
from usfmae.core.types import Batch, Pixels, content_id

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class MixedPixels:
    """B images of which some are gray and some have colour, each in its own channels until they are computed with."""

    gray: Pixels  # (G, S, S, 1)
    colour: Pixels  # (B - G, S, S, 3)
    coloured: NDArray[np.bool_]  # (B,) which of them have colour

    def __len__(self) -> int:
        return len(self.coloured)

    def __getitem__(self, rows: slice) -> Pixels | MixedPixels:
        """Some of the images: mixed only where both kinds are among them."""
        coloured = self.coloured[rows]
        gray, colour = (
            part[_span(kind, rows)] for part, kind in ((self.gray, ~self.coloured), (self.colour, self.coloured))
        )
        if coloured.all():
            return colour
        return MixedPixels(gray, colour, coloured) if coloured.any() else gray

    def wide(self) -> Pixels:
        """(B, S, S, 3)."""
        pixels: Pixels = np.empty((len(self), *self.colour.shape[1:]), np.uint8)
        pixels[~self.coloured], pixels[self.coloured] = self.gray, self.colour
        return pixels


def _span(kind: NDArray[np.bool_], rows: slice) -> slice:
    """Where the images of a kind among `rows` lie among all of that kind."""
    start, stop, _ = rows.indices(len(kind))
    return slice(int(kind[:start].sum()), int(kind[:stop].sum()))


def by_channels(images: Sequence[Pixels], make: Callable[[Positions], Pixels]) -> Pixels | MixedPixels:
    """What `make` gives for the gray images (S, S) and for those with colour (S, S, 3), each by their rows."""
    coloured = np.array([image.ndim == 3 for image in images])
    if coloured.all() or not coloured.any():
        return make(np.arange(len(images)))
    return MixedPixels(make(np.flatnonzero(~coloured)), make(np.flatnonzero(coloured)), coloured)


class Corpus:
    """The shards that were there when it was opened, ordered by name; shards added later do not disturb it.

    `verify` compares checksums: every byte is read once (about 1 GB/s a core), and again when its file has changed.
    `only` restricts the corpus to shards with these checksums, as a resumed run does. Raises CorpusError where a shard
    is damaged, missing, of another size, or where there are no images at all.
    """

    def __init__(self, roots: Sequence[Path], *, verify: bool = True, only: Collection[str] | None = None) -> None:
        paths = sorted((path for root in roots for path in Path(root, FOLDER).glob("*.json")), key=lambda p: p.name)
        indexes = [read_index(path) for path in paths]
        # Two roots may hold the same shard; it counts once.
        self.shards = tuple({index.sha256: index for index in indexes if only is None or index.sha256 in only}.values())
        where = ", ".join(str(root) for root in roots) or "(none given)"
        if only is not None and len(self.shards) != len(set(only)):
            missing = len(set(only)) - len(self.shards)
            raise CorpusError(f"corpus {where}", f"{missing} shard(s) are gone or changed", "restore them")
        if not self.shards:
            raise CorpusError(f"corpus {where}", "holds no images", "run 'usfmae prepare SOURCE --corpus DIR' first")
        sizes = sorted({index.size for index in self.shards})
        if len(sizes) > 1:
            raise CorpusError(f"corpus {where}", f"mixes image sizes {sizes}", "prepare all of it at one size")
        if verify:
            with ThreadPoolExecutor() as pool:
                list(pool.map(check, self.shards))
        self.size = sizes[0]
        self.ids = tuple(id_ for index in self.shards for id_ in index.ids)
        # An image without a group stands for itself.
        self.groups = tuple(g or i for index in self.shards for g, i in zip(index.groups, index.ids, strict=True))
        self.datasets = tuple(dataset for index in self.shards for dataset in index.datasets)
        self._pixels = [open_pixels(index) for index in self.shards]
        self._starts = np.cumsum([0] + [index.shard.count for index in self.shards])

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that training reads: pixels, order, groups and data sets; not of where it lies."""
        return content_id(*(index.sha256 for index in self.shards), *self.groups, *self.datasets)

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return sum(block.nbytes for block in self._pixels)

    def blocks(self) -> Sequence[Pixels]:
        """All pixels in the order of positions, a shard at a time: (N, S, S) where it is gray, else (N, S, S, 3)."""
        return self._pixels

    def images(self, positions: Sequence[int] | Positions) -> list[Pixels]:
        """Images by position, each in its own channels: (S, S) or (S, S, 3), views into the shards."""
        wanted = np.asarray(positions, dtype=np.int64)
        shards = np.searchsorted(self._starts, wanted, side="right") - 1
        return [self._pixels[s][p - self._starts[s]] for s, p in zip(shards, wanted, strict=True)]

    def fetch(self, positions: Sequence[int] | Positions) -> Batch:
        """Images by position: (B, S, S, 1), or (B, S, S, 3) as soon as one of them has colour."""
        rows = np.asarray(positions, dtype=np.int64)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        channels = max((self.shards[s].shard.channels for s in shards), default=1)
        pixels: Pixels = np.empty((len(rows), self.size, self.size, channels), np.uint8)
        for row, (shard, position) in enumerate(zip(shards, rows, strict=True)):
            image = self._pixels[shard][position - self._starts[shard]]
            pixels[row] = image if image.ndim == 3 else image[..., None]
        return Batch(pixels, rows)

    def split(self, held_out: float, seed: int) -> tuple[Positions, Positions]:
        """Positions to train on and held-out positions; a group is never parted.

        A group's side depends on (seed, group) alone, so it stays where it is when the corpus grows. With two
        groups or more and `held_out` above 0, neither side is empty.
        """
        draws = self._draws(seed)
        held = {group for group, draw in draws.items() if draw < held_out}
        if held_out > 0 and len(draws) > 1:
            ordered = sorted(draws, key=draws.__getitem__)
            held = (held | {ordered[0]}) - {ordered[-1]}
        return self._where(held)

    def folds(self, count: int, seed: int, grouped: bool = True) -> list[tuple[Positions, Positions]]:
        """`count` times (train, validation); each image is validated once. Raises CorpusError where there are too few.

        `grouped=False` splits images whatever their group, as the authors' notebook does.
        """
        if not grouped:
            shuffled = np.random.default_rng(seed).permutation(len(self))
            return [(np.setdiff1d(shuffled, part), np.sort(part)) for part in np.array_split(shuffled, count)]
        draws = self._draws(seed)
        if len(draws) < count:
            raise CorpusError(f"corpus of {len(draws)} group(s)", f"cannot make {count} folds", "use fewer folds")
        sizes = dict.fromkeys(draws, 0)
        for group in self.groups:
            sizes[group] += 1
        folds: list[list[str]] = [[] for _ in range(count)]
        filled = [0] * count
        # Largest groups first, each to the emptiest fold; equal sizes in drawn order.
        for group in sorted(draws, key=lambda g: (-sizes[g], draws[g])):
            emptiest = filled.index(min(filled))
            folds[emptiest].append(group)
            filled[emptiest] += sizes[group]
        return [self._where(set(fold)) for fold in folds]

    def _draws(self, seed: int) -> dict[str, float]:
        """A number in [0, 1) for each group."""
        return {group: int(content_id(str(seed), group)[:13], 16) / 16**13 for group in set(self.groups)}

    def _where(self, held: Collection[str]) -> tuple[Positions, Positions]:
        """Positions outside and inside the groups `held`."""
        inside = np.fromiter((group in held for group in self.groups), bool, len(self))
        return np.flatnonzero(~inside), np.flatnonzero(inside)
