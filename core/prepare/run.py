"""`prepare`: sources -> corpus. Identify every file, plan the shards, read and clean in workers, write.

Idempotent and resumable: what the ledger knows is not done again, and the plan, not the timing, decides which image
lies where.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from usfmae.core.clean.ocr import check_ocr
from usfmae.core.config import Settings
from usfmae.core.errors import ResourceError
from usfmae.core.prepare import plan
from usfmae.core.prepare.identify import Chosen, identified
from usfmae.core.prepare.ledger import CorpusLedger
from usfmae.core.prepare.summary import PrepareSummary, Progress
from usfmae.core.prepare.task import Task, engine_named
from usfmae.core.sandbox.pool import Pool
from usfmae.core.sandbox.worker import ScanResult
from usfmae.core.types import recipe_id, secret_id

# Limits of a machine, not of a picture: they may change between two runs into one corpus.
OPERATIONAL = {"decode_seconds", "clean_seconds", "memory_mb", "shard_images"}


def prepare(  # noqa: PLR0913
    sources: Sequence[Path],
    corpus_dir: Path,
    settings: Settings,
    *,
    secret: bytes,
    workers: int = 1,
    engine: str = "local",
    part: tuple[int, int] = (0, 1),
    only: Chosen | None = None,
    progress: Progress | None = None,
) -> PrepareSummary:
    """Read, clean and pack every scan below `sources` into `corpus_dir`; the sources are only ever read.

    Called again it reads what is new. `part` (i, n) does every n-th shard from the i-th on, so that n calls on n
    machines that share the disk do all. `only` restricts the scans to files that are known to be scans, and names
    their public data set and group. Raises SourceError (a source is absent), UsageError (a corpus of another
    recipe), ResourceError (no Tesseract; disk full: free space, call again), TryLaterError (another run is at work).
    """
    began = time.monotonic()
    check_ocr(settings.clean.ocr)
    ledger = CorpusLedger(corpus_dir)
    summary = PrepareSummary()
    with ledger.working(shared=part[1] > 1), Pool(workers, settings, secret) as pool:
        with ledger.planning():
            recipe = recipe_settings(settings)
            ledger.open(recipe_id({**recipe, "secret": secret_id(secret, "recipe")}), recipe)
            found = identified(sources, ledger, pool, secret, summary, progress, only)
            settled = {id_: result for id_, result in ledger.results().items() if result.outcome != "failed"}
            _plan_new(ledger, found, settled, settings)
        for id_ in found:
            if id_ in settled:
                summary.add(settled[id_])
        mine = list(ledger.plans())[part[0] :: part[1]]
        todo = [task for task in mine if not ledger.is_done(task[0])]
        with space_checked(corpus_dir, todo, found, ledger, settings):
            _work(engine_named(engine)(todo, found, ledger, pool), summary, began, progress)
    return summary


def _work(
    results: Iterator[list[ScanResult]], summary: PrepareSummary, began: float, progress: Progress | None
) -> None:
    """Count results as they come."""
    frames = 0
    summary.measure(frames, time.monotonic() - began)
    for unit in results:
        for result in unit:
            summary.add(result)
            frames += result.frames
        summary.measure(frames, time.monotonic() - began)
        if progress:
            progress(summary)


@contextmanager
def space_checked(
    corpus: Path, todo: Sequence[Task], found: Mapping[str, plan.Known], ledger: CorpusLedger, settings: Settings
) -> Iterator[None]:
    """ResourceError that says how much is needed: at once where the work cannot fit, else when the disk is full."""

    def needed() -> int:
        """Bytes of the images that are left, as gray ones; colour takes three times as much."""
        left = [id_ for name, units in todo if not ledger.is_done(name) for ids in units for id_ in ids]
        return sum(found[id_].planned for id_ in left if id_ in found) * settings.model.image_size**2

    def told(start: str, needed: int, free: int) -> ResourceError:
        figures = f"{needed / 1e6:.1f} MB are needed (three times that in colour), {free / 1e6:.1f} MB are free"
        again = "free space and run the same command again; what is done is kept"
        return ResourceError(f"disk of {corpus}", f"{start}about {figures}", again)

    whole, free = needed(), shutil.disk_usage(corpus).free
    if whole > free:
        raise told("", whole, free)
    try:
        yield
    except ResourceError as error:
        if error.why != "is full":
            raise
        raise told("is full: ", needed(), shutil.disk_usage(corpus).free) from None


def recipe_settings(settings: Settings) -> dict[str, Any]:
    """The settings that decide what an image of the corpus looks like."""
    aspect = settings.train.augment.aspect  # a recipe of 0.1 says nothing of it: squash
    return {
        **({"aspect": aspect} if aspect != "squash" else {}),
        "read": settings.read.model_dump(mode="json", exclude=OPERATIONAL),
        "clean": settings.clean.model_dump(mode="json"),
        "image_size": settings.model.image_size,
        "resize": settings.train.augment.resize,
    }


def _plan_new(
    ledger: CorpusLedger, found: dict[str, plan.Known], settled: Mapping[str, ScanResult], settings: Settings
) -> None:
    """Plan the scans that no open task holds and that are not settled; failed ones get a new chance."""
    waiting = {id_ for name, units in ledger.plans() if not ledger.is_done(name) for ids in units for id_ in ids}
    new = [known for id_, known in found.items() if id_ not in settled and id_ not in waiting]
    if new:
        ledger.add_plan(list(plan.tasks(new, settings.read.shard_images)))
