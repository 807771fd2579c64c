"""The images a site trains on, newest first, for people of the hospital: each beside the frame it was made from.

The images lie in the corpus; the frame as it was recorded is read from its source again when somebody looks.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from pathlib import Path

from usfmae.client.intake.inventory import preparation
from usfmae.client.review.frame_preview import image_id, png
from usfmae.client.review.scan_lookup import files_of
from usfmae.client.site import Site
from usfmae.core.corpus.shard import FOLDER, Index, open_pixels, read_index
from usfmae.core.errors import SourceError
from usfmae.core.prepare.ledger import CorpusLedger
from usfmae.core.prepare.run import unit_of
from usfmae.core.sandbox.records import Unit
from usfmae.core.sandbox.worker import Worker

RELEASED = "released-"  # begins the name of a shard that holds one frame a person let in


@dataclass(frozen=True)
class KeptImage:
    """One image of the corpus."""

    shard: str  # its index file's name without the ending
    row: int

    @property
    def released(self) -> str:
        """The entry of the quarantine it was, "" where the machine kept it."""
        return self.shard.partition(".")[0].removeprefix(RELEASED) if self.shard.startswith(RELEASED) else ""


@dataclass
class CorpusView:
    """How many images each shard has."""

    # What persons let in, then by the numbers that shards are given one after the other, newest first
    shards: list[tuple[str, int]] = field(default_factory=list)
    listed: tuple[Path, int] | None = None  # the folder, and when a name in it last changed

    def refresh(self, corpus: Path) -> CorpusView:
        """Lists the shards where one came or went since the last time: each is written beside and renamed."""
        folder = corpus / FOLDER
        state = (folder, folder.stat().st_mtime_ns) if folder.exists() else None
        if state is None or state != self.listed:
            counts = CorpusLedger(corpus).image_counts()
            self.shards = [(name.removesuffix(".json"), counts[name]) for name in sorted(counts, reverse=True)]
            self.listed = state
        return self

    @property
    def total(self) -> int:
        return sum(count for _, count in self.shards)

    def slice(self, start: int, count: int) -> list[KeptImage]:
        """`count` images from the `start`-th newest on."""
        chosen: list[KeptImage] = []
        for shard, images in self.shards:
            last = images - 1 - max(0, start)
            chosen += [KeptImage(shard, row) for row in range(last, max(-1, last - count + len(chosen)), -1)]
            start -= images
        return chosen

    def neighbours(self, image: KeptImage) -> dict[str, KeptImage | None]:
        """The images before and after in the list, None at its ends."""
        newer = sum(count for _, count in itertools.takewhile(lambda one: one[0] != image.shard, self.shards))
        at = newer + dict(self.shards)[image.shard] - 1 - image.row
        return {
            "newer": next(iter(self.slice(at - 1, 1)), None) if at else None,
            "older": next(iter(self.slice(at + 1, 1)), None),
        }

    def find(self, shard: str, row: int) -> KeptImage:
        """SourceError where there is no such image."""
        if not 0 <= row < dict(self.shards).get(shard, 0):
            raise SourceError("this image", "is not in the corpus", "see the list")
        return KeptImage(shard, row)


def image(site: Site, image: KeptImage) -> bytes:
    """The image as it trains, as a PNG."""
    return png(open_pixels(index_of(site.corpus, image.shard))[image.row])


def index_of(corpus: Path, shard: str) -> Index:
    file = corpus / FOLDER / f"{shard}.json"
    return _read(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read(file: Path, changed: int) -> Index:
    return read_index(file)


@dataclass(frozen=True)
class ImageOrigin:
    """The frame an image was made from, and the scans it was cleaned together with."""

    unit: Unit
    scan: str
    frame: int


def origin(site: Site, image: KeptImage) -> ImageOrigin:
    """SourceError where the scan is not in the sources any more, nor kept for a while after it came."""
    scan, frame = frame_of(site, image)
    together = CorpusLedger(site.corpus).together(scan)
    files = files_of(site, together)
    if not any(one.id == scan and one.n in files for one in together):
        why = "is not in the sources any more; what the PACS sent is deleted once cleaned"
        raise SourceError("the recorded frame", why, "set intake.keep_days to keep what comes for a while")
    return ImageOrigin(unit_of(together, files), scan, frame)


def frame_of(site: Site, image: KeptImage) -> tuple[str, int]:
    """(scan, number of the frame), by the ledger's index."""
    ledger = CorpusLedger(site.corpus)
    held = ledger.held(image.released) if image.released else None
    scan_frame = (held.scan, held.frame) if held else ledger.origin(f"{image.shard}.npy", image.row)
    scan_frame = scan_frame or _frame_by_name(site, image, ledger)
    if scan_frame is None:
        raise SourceError("the recorded frame", "is not known to this corpus", "nothing: the image is kept")
    return scan_frame


def _frame_by_name(site: Site, image: KeptImage, ledger: CorpusLedger) -> tuple[str, int] | None:
    """For shards of version 0.1: an image's name is a hash of both, so the frames of its patient's scans are tried."""
    index = index_of(site.corpus, image.shard)
    wanted = index.ids[image.row]
    scans = ledger.task_scans(image.shard.partition(".")[0], index.groups[image.row])
    tries = ((scan, frame) for frame in range(site.settings.read.max_frames if scans else 0) for scan in scans)
    return next((one for one in tries if image_id(*one) == wanted), None)


def pictures(site: Site, origin: ImageOrigin) -> dict[str, bytes]:
    """PNGs "before", "mask" and "after", made anew in a process of its own; fewer where that fails."""
    worker = Worker(preparation(site), site.secret)
    try:
        return worker.show(origin.unit, origin.scan, origin.frame)
    finally:
        worker.close()
