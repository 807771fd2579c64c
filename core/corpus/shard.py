"""Packed images on disk: `shards/NAME.gray.npy` or `NAME.rgb.npy`, memory-mapped, with an index `.json` beside each.

A shard exists once its index does: the index is written last, so a crash leaves nothing half visible. Shards are
never changed; a corpus grows by more shards, so a run may read old ones while `prepare` writes new ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from usfmae.core.errors import CorpusError
from usfmae.core.files import write_atomic
from usfmae.core.types import CleanImage, Pixels, Shard, Trail

FOLDER = "shards"  # inside a corpus
FORMAT = 1
CHECKED_FOR = 30 * 86400.0  # seconds for which a shard that was read whole counts as sound
KINDS = {"gray": 1, "rgb": 3}  # name in the file -> channels


@dataclass(frozen=True)
class PackedImage:
    """One image as it is stored."""

    pixels: Pixels  # (S, S) where R = G = B, else (S, S, 3); uint8
    id: str  # content id of the image's trail
    group: str  # what must stay on one side of a split (patient, study, clip)
    dataset: str = ""  # public data set, "" at a hospital
    # Where it was made from; for the ledger of the corpus, never in a shard.
    scan: str = ""
    frame: int = 0


@dataclass(frozen=True)
class Index:
    """What stands beside a shard, and where the shard is."""

    shard: Shard
    size: int  # side of the images in pixels
    sha256: str  # of the whole .npy file
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    datasets: tuple[str, ...]


def square(
    image: CleanImage,
    size: int,
    group: str,
    dataset: str = "",
    resample: Literal["bilinear", "nearest"] = "bilinear",
    aspect: Literal["squash", "keep"] = "squash",
) -> PackedImage:
    """The image resized to `size` x `size`, one channel where R = G = B.

    `squash` gives up the aspect, as the paper does; `keep` pads the shorter side with black on both ends.
    `nearest` is the official notebook's first transform, bit for bit; `bilinear` filters before it samples.
    """
    filters = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
    pixels = image.pixels
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if aspect == "keep":
        pixels = padded(pixels)
    resized = Image.fromarray(np.ascontiguousarray(pixels)).resize((size, size), filters[resample])
    return PackedImage(np.asarray(resized), image.trail.id, group, dataset)


def padded(pixels: Pixels) -> Pixels:
    """(H, W[, 3]) -> (M, M[, 3]) with M the longer side: the image in the middle, black about it."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side, *pixels.shape[2:]), np.uint8)
    square[top : top + height, left : left + width] = pixels
    return square


def write_shard(root: Path, name: str, items: Sequence[PackedImage]) -> list[Shard]:
    """Store items under `root/shards` and return the shards: none, one, or two (gray and colour apart).

    Atomic, idempotent and byte-deterministic: the same items give the same bytes, and a second call changes nothing.
    Raises CorpusError where `name` exists with other content, ResourceError where the disk is full.
    """
    written = []
    for kind, channels in KINDS.items():
        chosen = [item for item in items if (1 if item.pixels.ndim == 2 else 3) == channels]
        if chosen:
            written.append(_write_one(root / FOLDER / f"{name}.{kind}.npy", channels, chosen))
    return written


def _write_one(path: Path, channels: int, items: Sequence[PackedImage]) -> Shard:
    buffer = io.BytesIO()
    np.save(buffer, np.stack([item.pixels for item in items]))
    data = buffer.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    index = {
        "format": FORMAT,
        "sha256": sha256,
        "bytes": len(data),
        "size": items[0].pixels.shape[0],
        "channels": channels,
        "ids": [item.id for item in items],
        "groups": [item.group for item in items],
        "datasets": [item.dataset for item in items],
    }
    text = json.dumps(index, indent=1, sort_keys=True).encode()
    index_file = path.with_suffix(".json")
    if index_file.exists() and index_file.read_bytes() != text:
        raise CorpusError(f"shard {path.stem}", "exists with other content", "give the new images another name")
    if not index_file.exists():
        write_atomic(path, data)
        write_atomic(index_file, text)
    return Shard(path, len(items), channels, Trail(sha256))


def read_index(path: Path) -> Index:
    """The index at `path`, checked for shape and against the length of its shard. Raises CorpusError."""
    data = path.with_suffix(".npy")
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        lists = [tuple(map(str, values[key])) for key in ("ids", "groups", "datasets")]
        count, channels, size = len(lists[0]), int(values["channels"]), int(values["size"])
        sha256, length, form = str(values["sha256"]), int(values["bytes"]), values["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"index {path}", f"unreadable: {error}", "run 'usfmae prepare' again") from None
    if form != FORMAT:
        raise CorpusError(f"index {path}", f"format {form}, this version reads {FORMAT}", "update usfmae")
    if not count or any(len(other) != count for other in lists):
        raise CorpusError(f"index {path}", "empty, or its lists differ in length", "run 'usfmae prepare' again")
    stored = data.stat().st_size if data.exists() else 0
    if stored != length:
        raise CorpusError(
            f"shard {data}",
            f"has {stored} bytes, its index says {length}",
            "remove both and run 'usfmae prepare' again",
        )
    return Index(Shard(data, count, channels, Trail(sha256)), size, sha256, *lists)


def image_count(path: Path) -> int:
    """Images in a shard by the header of its `.npy` file, 0 where there is none: a corpus has thousands of shards."""
    try:
        with path.with_suffix(".npy").open("rb") as file:
            np.lib.format.read_magic(file)
            return int(np.lib.format.read_array_header_1_0(file)[0][0])
    except (OSError, ValueError, IndexError):
        return 0


def check(index: Index) -> None:
    """Raises CorpusError where the bytes of a shard are not those its index was written for.

    They are read once; a mark beside the shard spares the next program, until the file changes or a month has passed:
    a site opens its corpus in every round.
    """
    path = index.shard.path
    status, mark = path.stat(), path.with_suffix(".checked")
    seal = f"{index.sha256} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
    if _marked(mark, seal):
        return
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != index.sha256:
            raise CorpusError(
                f"shard {path}",
                "is damaged: its checksum differs from its index",
                "remove both and run 'usfmae prepare' again",
            )
    with contextlib.suppress(OSError):  # a corpus that may not be written to is read each time
        mark.write_text(seal)


def _marked(mark: Path, seal: str) -> bool:
    try:
        return mark.read_text() == seal and time.time() - mark.stat().st_mtime < CHECKED_FOR
    except OSError:
        return False


def open_pixels(index: Index) -> Pixels:
    """The images of a shard, memory-mapped: (N, S, S) or (N, S, S, 3) uint8. Raises CorpusError."""
    shape = (index.shard.count, index.size, index.size) + ((3,) if index.shard.channels == 3 else ())
    try:
        pixels: Pixels = np.load(index.shard.path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CorpusError(f"shard {index.shard.path}", f"unreadable: {error}", "run 'usfmae prepare' again") from None
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise CorpusError(
            f"shard {index.shard.path}",
            f"holds {pixels.dtype} {pixels.shape}, its index says uint8 {shape}",
            "remove both and run 'usfmae prepare' again",
        )
    return pixels
