"""The public corpus a coordinator ships to its sites: which files it is, and how a site knows that it has them whole.

A corpus travels as its shards and indexes, byte for byte. `digest` covers all of them and stands in the recipe that
the coordinator signs, so it does not matter what brought the files: a request, or a disk carried by hand.
"""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

import numpy as np

from usfmae.core.corpus.batch import Positions
from usfmae.core.corpus.sampling import generator
from usfmae.core.corpus.shard import FOLDER
from usfmae.core.errors import CorpusError
from usfmae.core.types import content_id

MOST_BYTES = 2**30  # of all files; about 20,000 gray images of 224 x 224
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,150}\.(gray|rgb)\.(npy|json)")


def is_name(name: str) -> bool:
    """Whether a file of this name may come over the wire: that of a shard or index, never a path."""
    return _NAME.fullmatch(name) is not None


def files(folder: Path) -> dict[str, Path]:
    """Every shard and index of a corpus, by name. CorpusError where there is none, or one cannot travel."""
    by_name = {path.name: path for path in sorted((folder / FOLDER).glob("*")) if path.suffix in (".npy", ".json")}
    if not by_name:
        raise CorpusError(f"replay corpus {folder}", "holds no images", "make it with 'usfmae prepare'")
    odd = [name for name in by_name if not is_name(name)]
    if odd:
        raise CorpusError(f"replay corpus {folder}", f"has a file {odd[0]!r:.80}", "make it with 'usfmae prepare'")
    return by_name


def size(folder: Path) -> int:
    """Bytes that a site has to fetch."""
    return sum(path.stat().st_size for path in files(folder).values())


def digest(folder: Path) -> str:
    """Hash of every file's name and bytes. CorpusError where there is no corpus."""
    return content_id(*(part for name, path in files(folder).items() for part in (name, _sha256(path))))


def _sha256(path: Path) -> str:
    status = path.stat()
    return _read_sha256(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4096)
def _read_sha256(path: Path, changed: int, length: int) -> str:
    """Read once while neither time nor length of the file changes: an agent asks at every look."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_replay(own: Positions, public: Positions, share: float, turn: int, seed: int) -> Positions:
    """All of `own`, and as many of `public` that they make up `share` (0 to 0.5) of the list.

    `turn` (the round) moves on through `public`, so that over the rounds all of it is seen. (N,), (M,) -> (K,)
    """
    count = round(len(own) * share / (1 - share))
    if not count or not len(public):
        return own
    return np.concatenate([own, _stretch(public, count, turn * count, seed)])


def with_new(positions: Positions, uses: Positions, share: float, repeats: int) -> Positions:
    """Repeat images that were never used until they make up `share` of the list, each at most `repeats` times.

    `uses` (N,) counts how often training has drawn each of `positions` (N,). Old images are never repeated.
    """
    new, old = positions[uses == 0], positions[uses > 0]
    if not len(new) or not len(old):
        return positions
    count = round(len(old) * share / (1 - share))
    count = min(max(count, len(new)), repeats * len(new))
    return np.concatenate([old, np.resize(new, count)])


def _stretch(positions: Positions, count: int, start: int, seed: int) -> Positions:
    """`count` entries from place `start` on of endless shuffled passes over `positions`."""
    passes, places = np.divmod(np.arange(start, start + count), len(positions))
    parts = [generator(seed, 5, int(p)).permutation(positions)[places[passes == p]] for p in np.unique(passes)]
    return np.concatenate(parts)
