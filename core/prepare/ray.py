"""The same work on a Ray cluster: one Ray task per shard, each with a decoding process of its own.

Sources and corpus must lie on a disk that all nodes see. Ray is imported only when it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from usfmae.core.errors import ResourceError
from usfmae.core.sandbox.pool import Pool

Task = TypeVar("Task")
Done = TypeVar("Done")


def run_ray(
    work: Callable[..., Done],  # work(task, corpus, settings, secret), wherever Ray puts it
    tasks: Iterable[Task],
    pool: Pool,
    corpus: Path,
) -> Iterator[Done]:
    """Results shard by shard, in the order in which they are done. Raises ResourceError without Ray."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone outside
    try:
        import ray
    except ImportError:
        raise ResourceError("--engine ray", "Ray is not installed", "pip install 'usfmae[ray]'") from None
    started = not ray.is_initialized()
    if started:
        _join(ray, pool.size)
    worker = pool.workers[0]
    try:
        remote = ray.remote(num_cpus=1, max_retries=3)(work)
        waiting = [remote.remote(task, corpus.absolute(), worker.settings, worker.secret) for task in tasks]
        while waiting:
            (ready,), waiting = ray.wait(waiting, num_returns=1)
            yield ray.get(ready)
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
