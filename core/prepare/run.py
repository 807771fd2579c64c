"""`prepare`: sources -> corpus. Identify every file, plan the shards, read and clean in workers, write.

Idempotent and resumable: what the ledger knows is not done again, and the plan, not the timing, decides which image
lies where.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from usfmae.core.clean.ocr import check_ocr
from usfmae.core.config import Settings
from usfmae.core.corpus.shard import FOLDER, PackedImage, write_shard
from usfmae.core.errors import CorpusError, ResourceError, UsfmaeError
from usfmae.core.files import write_atomic
from usfmae.core.prepare.identify import Identification, Sources, identified
from usfmae.core.prepare.ledger import UNBALANCED, UNFORESEEN, CorpusLedger
from usfmae.core.prepare.ledger_queries import KnownScan
from usfmae.core.prepare.progress import PrepareSummary, Progress
from usfmae.core.prepare.ray import run_ray
from usfmae.core.prepare.withdraw import Withdrawn, without
from usfmae.core.read.discover import Candidate, check_sources
from usfmae.core.sandbox.pool import Pool
from usfmae.core.sandbox.records import ScanResult, Unit
from usfmae.core.sandbox.worker import StoppedError, UnitResult, Worker
from usfmae.core.types import recipe_id, secret_id

logger = logging.getLogger(__name__)

# Limits of a machine, not of a picture: they may change between two runs into one corpus.
OPERATIONAL = {"decode_seconds", "clean_seconds", "memory_mb", "shard_images"}
STILLS_TOGETHER = 32  # stills of one study that share a search for static overlay


@dataclass(frozen=True)
class ShardTask:
    """The units of one shard, with the places where their scans lie."""

    name: str
    units: tuple[Unit, ...]
    planned: tuple[int, ...]  # frames that each unit is likely to keep


@dataclass(frozen=True)
class Parallel:
    """How many processes do the work, and which share of it."""

    workers: int = 1
    engine: str = "local"  # or ray
    part: tuple[int, int] = (0, 1)  # (i, n): every n-th shard from the i-th on, so that n machines on one disk do all


def prepare(
    sources: Sources,
    corpus_dir: Path,
    settings: Settings,
    secret: bytes,
    parallel: Parallel = Parallel(),
    progress: Progress | None = None,
) -> PrepareSummary:
    """Read, clean and pack every scan below `sources` into `corpus_dir`; the sources are only ever read.

    Called again it reads what is new. Raises SourceError (a source is absent), UsageError (a corpus of another
    recipe), ResourceError (no Tesseract; disk full: free space, call again), TryLaterError (another run is at work).
    """
    began = time.monotonic()
    check_ocr(settings.clean.ocr)
    check_sources(sources.paths)  # before anything is written
    ledger = CorpusLedger(corpus_dir)
    part, whole = parallel.part, parallel.part[1] == 1
    with ledger.working(shared=not whole), Pool(parallel.workers, settings, secret) as pool:
        with ledger.writing():
            recipe = recipe_settings(settings)
            ledger.open(recipe_id({**recipe, "secret": secret_id(secret, "recipe")}), recipe)
            show = (lambda met: progress(PrepareSummary(scans=met))) if progress else None
            identification = identified(sources, ledger, pool, show)
            ledger.add_plan(planned(ledger.unplanned(), settings.read.shard_images))
            ledger.save()
            tasks = ledger.open_tasks(part)
            shards: Iterable[ShardTask] = (_shard_task(ledger, n, name, identification) for n, name in tasks)
            if not whole:
                shards = list(shards)  # other machines use the ledger meanwhile
        summary = PrepareSummary.of(ledger.counts(present=True), identification.failed)
        summary.planned, summary.in_flight = ledger.planned(n for n, _ in tasks), lambda: pool.frames_in_flight
        results = (
            run_ray(work_shard, shards, pool, corpus_dir)
            if parallel.engine == "ray"
            else run_local(shards, pool, corpus_dir)
        )
        with space_checked(corpus_dir, ledger, part, settings):
            for unit in results:
                summary.advance(unit.results, unit.planned, time.monotonic() - began)
                if progress:
                    progress(summary)
                if whole:
                    ledger.absorb_if_any()
            with ledger.writing():  # takes over what is left
                books = ledger.counts(present=True)
    ended = PrepareSummary.of(books, identification.failed, at_end=whole)
    ended.measure(summary.read_now, time.monotonic() - began)
    return ended


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


# The plan: which scans are cleaned together, and which share a shard ------------------------------------------------


def planned(scans: Iterable[tuple[int, bytes, int]], images: int) -> Iterator[tuple[int, int, int]]:
    """(scan, task, unit) of each scan (number, study, frames): the same scans give the same plan.

    Clips alone, stills of one study together, in the order in which each unit's first scan was found; units are filled
    into tasks of about `images` images. Ten million scans fit: a number each, no object.
    """
    numbers, units, frames = array("q"), array("q"), array("q")
    together: dict[bytes, tuple[int, int]] = {}  # study -> (its open unit, stills in it)
    for number, study, count in scans:
        still = bool(study) and count == 1
        unit, size = together.get(study, (len(frames), STILLS_TOGETHER)) if still else (len(frames), STILLS_TOGETHER)
        if size == STILLS_TOGETHER:
            unit, size = len(frames), 0
            frames.append(0)
        if still:
            together[study] = unit, size + 1
        numbers.append(number)
        units.append(unit)
        frames[unit] += count
    tasks, task, filled = array("q"), 0, 0
    for count in frames:
        tasks.append(task)
        filled += count
        if filled >= images:
            task, filled = task + 1, 0
    yield from ((number, tasks[unit], unit) for number, unit in zip(numbers, units, strict=True))


def _shard_task(ledger: CorpusLedger, number: int, name: str, identification: Identification) -> ShardTask:
    """The units of a task, as far as their files are still there."""
    units, frames = [], []
    for _, scans in groupby(ledger.scans_of(number), key=lambda scan: scan.unit):
        present = [scan for scan in scans if scan.n in identification.files]
        if present:
            units.append(unit_of(present, identification.files))
            frames.append(sum(scan.planned for scan in present))
    return ShardTask(name, tuple(units), tuple(frames))


def unit_of(scans: Sequence[KnownScan], files: Mapping[int, Candidate]) -> Unit:
    """The scans that are cleaned together, with their places; those without one are left out."""
    there = [scan for scan in scans if scan.n in files]
    placed = tuple(scan.at(file.path, file.member, file.stamp) for scan in there for file in (files[scan.n],))
    return Unit(placed, any(scan.planned > 1 for scan in there))


# The work: units run by workers in any order, a shard written once and whole ----------------------------------------


@dataclass(frozen=True)
class UnitDone:
    """What became of the scans of a unit, for the counts; a shard's at once where another machine did it."""

    results: tuple[ScanResult, ...]
    planned: int


@dataclass
class _Open:
    """A task whose units are coming in, in any order."""

    task: ShardTask
    done: dict[int, UnitResult] = field(default_factory=dict)  # by their place in the plan

    def results(self) -> list[ScanResult]:
        return [result for place in range(len(self.task.units)) for result in self.done[place][0]]

    def images(self) -> list[PackedImage]:
        return [image for place in range(len(self.task.units)) for image in self.done[place][1]]


def run_local(tasks: Iterable[ShardTask], pool: Pool, corpus: Path) -> Iterator[UnitDone]:
    """Results unit by unit as they come; a task's shard and then its outcome are written once all are in.

    Units of the next tasks run while one is finished and long ones go first, so all workers stay busy to the end.
    Raises ResourceError (disk full).
    """
    opened: dict[str, _Open] = {}

    def pieces() -> Iterator[tuple[str, int, Unit]]:
        for task in tasks:
            if not task.units:
                store(corpus, task.name, [], [])
                continue
            opened[task.name] = _Open(task)
            long_first = sorted(range(len(task.units)), key=lambda place: -task.planned[place])
            yield from ((task.name, place, task.units[place]) for place in long_first)

    def work(worker: Worker, piece: tuple[str, int, Unit]) -> UnitResult:
        return accounted(worker, piece[2])

    for (name, place, _), cleaned in pool.as_done(work, pieces()):
        open_ = opened[name]
        open_.done[place] = cleaned
        if len(open_.done) == len(open_.task.units):
            del opened[name]
            store(corpus, name, open_.results(), open_.images())
        yield UnitDone(tuple(cleaned[0]), open_.task.planned[place])


def work_shard(task: ShardTask, corpus: Path, settings: Settings, secret: bytes) -> UnitDone:
    """One shard, start to end, on whatever machine. Idempotent, so it may be started twice."""
    with Pool(1, settings, secret) as pool:
        units = list(run_local([task], pool, corpus))
    return UnitDone(tuple(result for unit in units for result in unit.results), sum(task.planned))


def accounted(worker: Worker, unit: Unit) -> UnitResult:
    """Read and clean a unit. Each of its scans has one result, and each frame of it is in one count.

    What an unforeseen error, or a count that does not add up, leaves open counts as failed: the next run tries again.
    """
    try:
        results, images = worker.process_unit(unit)
    except (UsfmaeError, StoppedError):
        raise
    except Exception as error:
        logger.warning("scans could not be cleaned: %s", type(error).__name__)
        worker.close()
        return [ScanResult(scan.trail.id, "failed", UNFORESEEN) for scan in unit.scans], []
    packed = Counter(image.scan for image in images)
    by_id = {result.id: result for result in results if is_balanced(result, packed[result.id])}
    sure = [by_id.get(scan.trail.id) or ScanResult(scan.trail.id, "failed", UNBALANCED) for scan in unit.scans]
    return sure, [image for image in images if image.scan in by_id]


def is_balanced(result: ScanResult, images: int) -> bool:
    """Every frame that was met is kept (and among the images), kept back, or nearly the same as another."""
    return images == result.kept and result.balanced


def store(corpus: Path, task: str, results: Sequence[ScanResult], images: Sequence[PackedImage]) -> None:
    """Write a task's shards, then its outcome, which the ledger takes over: a task is done once that exists."""
    results, images = without(Withdrawn.of(corpus), results, images)
    for index in (corpus / FOLDER).glob(f"{task}.*.json"):
        anew = index.name.count(".") > 2  # without what was withdrawn, see withdraw.py
        if anew or not index.with_suffix(".npy").exists():
            index.unlink()  # all images of the task are written again
            index.with_suffix(".npy").unlink(missing_ok=True)
    try:
        shards = write_shard(corpus, task, images)
    except CorpusError:
        # A shard without an outcome: a crash fell between the two, and a retried scan ended otherwise this time.
        for path in (corpus / FOLDER).glob(f"{task}.*"):
            path.unlink()
        shards = write_shard(corpus, task, images)
    packed = []
    for shard in shards:
        inside = [image for image in images if (1 if image.pixels.ndim == 2 else 3) == shard.channels]
        rows = [[scan, [image.frame for image in frames]] for scan, frames in groupby(inside, key=lambda i: i.scan)]
        packed.append({"name": shard.path.name, "rows": rows})
    outcome = {"scans": [asdict(result) for result in results], "shards": packed}
    write_atomic(corpus / "ledger" / "tasks" / f"{task}.json", json.dumps(outcome, sort_keys=True).encode())


# The disk -----------------------------------------------------------------------------------------------------------


@contextmanager
def space_checked(corpus: Path, ledger: CorpusLedger, part: tuple[int, int], settings: Settings) -> Iterator[None]:
    """ResourceError that says how much is needed: at once where the work cannot fit, else when the disk is full."""

    def needed() -> int:
        """Bytes of the images that are left, as gray ones; colour takes three times as much."""
        return ledger.planned(n for n, _ in ledger.open_tasks(part)) * settings.model.image_size**2

    def failed(start: str, needed: int, free: int) -> ResourceError:
        figures = f"{needed / 1e6:.1f} MB are needed (three times that in colour), {free / 1e6:.1f} MB are free"
        again = "free space and run the same command again; what is done is kept"
        return ResourceError(f"disk of {corpus}", f"{start}about {figures}", again)

    whole, free = needed(), shutil.disk_usage(corpus).free
    if whole > free:
        raise failed("", whole, free)
    try:
        yield
    except ResourceError as error:
        if error.why != "is full":
            raise
        raise failed("is full: ", needed(), shutil.disk_usage(corpus).free) from None
