"""The same work on a Ray cluster: one Ray task per shard, each with a decoding process of its own.

Sources and corpus must lie on a disk that all nodes see. Ray is imported only when it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from usfmae.core.config import Settings
from usfmae.core.errors import ResourceError
from usfmae.core.prepare.ledger import CorpusLedger
from usfmae.core.prepare.plan import Known
from usfmae.core.prepare.task import Task, run_local
from usfmae.core.sandbox.pool import Pool
from usfmae.core.sandbox.worker import ScanResult


def run_shard(task: Task, found: dict[str, Known], corpus: Path, settings: Settings, secret: bytes) -> list[ScanResult]:
    """One shard, start to end, wherever Ray puts it. Idempotent, so Ray may start it twice."""
    with Pool(1, settings, secret) as pool:
        return [result for unit in run_local([task], found, CorpusLedger(corpus), pool) for result in unit]


def run_ray(
    tasks: Sequence[Task], found: dict[str, Known], ledger: CorpusLedger, pool: Pool
) -> Iterator[list[ScanResult]]:
    """Results shard by shard, in the order in which they are done. Raises ResourceError without Ray."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone outside
    try:
        import ray
    except ImportError:
        raise ResourceError("--engine ray", "Ray is not installed", "pip install 'usfmae[ray]'") from None
    started = not ray.is_initialized()
    if started:
        _join(ray, pool.size)
    try:
        remote = ray.remote(num_cpus=1, max_retries=3)(run_shard)
        waiting = [
            remote.remote(
                task, _of(task, found), ledger.corpus.absolute(), pool.workers[0].settings, pool.workers[0].secret
            )
            for task in tasks
        ]
        while waiting:
            (done,), waiting = ray.wait(waiting, num_returns=1)
            yield ray.get(done)
    finally:
        if started:
            ray.shutdown()


def _join(ray: Any, size: int) -> None:
    """The cluster at RAY_ADDRESS; without that a local one of `size` processes."""
    address = os.environ.get("RAY_ADDRESS")
    local = {} if address else {"num_cpus": size, "include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    except Exception as error:  # Ray raises bare Exception where a node does not come up
        why = str(error).splitlines()[0]
        raise ResourceError("Ray", why, "see that RAY_ADDRESS answers, or use --engine local") from None


def _of(task: Task, found: dict[str, Known]) -> dict[str, Known]:
    """The scans of one task, so that not every task carries them all."""
    return {id_: found[id_] for ids in task[1] for id_ in ids if id_ in found}
