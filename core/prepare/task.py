"""Tasks: the units of one shard, run by workers in any order, written once and whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from usfmae.core.corpus.shard import FOLDER, Packed, write_shard
from usfmae.core.errors import CorpusError
from usfmae.core.prepare.ledger import Ledger
from usfmae.core.prepare.plan import Known, unit_of
from usfmae.core.prepare.pool import Pool
from usfmae.core.prepare.worker import ScanResult, Unit, UnitResult, Worker

Task = tuple[str, list[list[str]]]  # name, units of scan ids


@dataclass
class _Open:
    """A task whose units are coming in."""

    name: str
    left: int
    results: list[ScanResult] = field(default_factory=list)
    images: list[Packed] = field(default_factory=list)


def run_local(tasks: Iterable[Task], found: dict[str, Known], ledger: Ledger, pool: Pool) -> Iterator[list[ScanResult]]:
    """Results unit by unit; each task's shard and then its ledger entry are written when its last unit is in.

    Units of the next tasks run while one is finished, so all workers stay busy. Raises ResourceError (disk full).
    """
    opened: dict[str, _Open] = {}

    def pieces() -> Iterator[tuple[str, Unit]]:
        for name, units in tasks:
            opened[name] = _Open(name, len(units))
            yield from ((name, unit_of(ids, found)) for ids in units)

    def work(worker: Worker, piece: tuple[str, Unit]) -> UnitResult:
        return worker.process_unit(piece[1])

    for (name, _), (results, images) in pool.map(work, pieces()):
        task = opened[name]
        task.left -= 1
        task.results += results
        task.images += images
        if not task.left:
            del opened[name]
            _finish(task, ledger)
        yield results


def _finish(task: _Open, ledger: Ledger) -> None:
    for index in (ledger.corpus / FOLDER).glob(f"{task.name}.*.json"):
        if not index.with_suffix(".npy").exists():
            index.unlink()  # its images were removed; both are written again
    try:
        shards = write_shard(ledger.corpus, task.name, task.images)
    except CorpusError:
        # A shard without a ledger entry: a crash fell between the two, and a retried scan ended otherwise this time.
        for path in (ledger.corpus / FOLDER).glob(f"{task.name}.*"):
            path.unlink()
        shards = write_shard(ledger.corpus, task.name, task.images)
    ledger.finish(task.name, task.results, shards)


Engine = Callable[[Sequence[Task], dict[str, Known], Ledger, Pool], Iterator[list[ScanResult]]]


def engine_named(name: str) -> Engine:
    """`local`, or `ray`, which is imported only then."""
    if name == "ray":
        from usfmae.core.prepare.ray import run_ray

        return run_ray
    return run_local
