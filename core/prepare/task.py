"""Tasks: the units of one shard, run by workers in any order, written once and whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from usfmae.core.corpus.shard import FOLDER, PackedImage, write_shard
from usfmae.core.errors import CorpusError
from usfmae.core.prepare.ledger import CorpusLedger
from usfmae.core.prepare.plan import Known, unit_of
from usfmae.core.sandbox.pool import Pool
from usfmae.core.sandbox.worker import ScanResult, Unit, UnitResult, Worker

Task = tuple[str, list[list[str]]]  # name, units of scan ids


@dataclass
class _Open:
    """A task whose units are coming in, in any order."""

    name: str
    units: int
    done: dict[int, UnitResult] = field(default_factory=dict)  # by their place in the plan

    def results(self) -> list[ScanResult]:
        return [result for place in range(self.units) for result in self.done[place][0]]

    def images(self) -> list[PackedImage]:
        return [image for place in range(self.units) for image in self.done[place][1]]


def run_local(
    tasks: Iterable[Task], found: dict[str, Known], ledger: CorpusLedger, pool: Pool
) -> Iterator[list[ScanResult]]:
    """Results unit by unit as they come; a task's shard and then its ledger entry are written once all are in.

    Units of the next tasks run while one is finished and long ones go first, so all workers stay busy to the end.
    Raises ResourceError (disk full).
    """
    opened: dict[str, _Open] = {}

    def pieces() -> Iterator[tuple[str, int, Unit]]:
        for name, units in tasks:
            opened[name] = _Open(name, len(units))
            long_first = sorted(range(len(units)), key=lambda place: -planned(units[place]))
            yield from ((name, place, unit_of(units[place], found)) for place in long_first)

    def planned(ids: list[str]) -> int:
        return sum(found[id_].planned for id_ in ids if id_ in found)

    def work(worker: Worker, piece: tuple[str, int, Unit]) -> UnitResult:
        return worker.process_unit(piece[2])

    for (name, place, _), done in pool.as_done(work, pieces()):
        task = opened[name]
        task.done[place] = done
        if len(task.done) == task.units:
            del opened[name]
            _finish(task, ledger)
        yield done[0]


def _finish(task: _Open, ledger: CorpusLedger) -> None:
    for index in (ledger.corpus / FOLDER).glob(f"{task.name}.*.json"):
        if not index.with_suffix(".npy").exists():
            index.unlink()  # its images were removed; both are written again
    try:
        shards = write_shard(ledger.corpus, task.name, task.images())
    except CorpusError:
        # A shard without a ledger entry: a crash fell between the two, and a retried scan ended otherwise this time.
        for path in (ledger.corpus / FOLDER).glob(f"{task.name}.*"):
            path.unlink()
        shards = write_shard(ledger.corpus, task.name, task.images())
    ledger.finish(task.name, task.results(), shards)


Engine = Callable[[Sequence[Task], dict[str, Known], CorpusLedger, Pool], Iterator[list[ScanResult]]]


def engine_named(name: str) -> Engine:
    """`local`, or `ray`, which is imported only then."""
    if name == "ray":
        from usfmae.core.prepare.ray import run_ray

        return run_ray
    return run_local
