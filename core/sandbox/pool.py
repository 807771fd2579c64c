"""Workers side by side: each has its own thread and its own decoding process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import TypeVar

from usfmae.core.config import Settings
from usfmae.core.sandbox.worker import Worker

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 8  # items in flight per worker where results keep their order: the oldest one may be slow


class Pool:
    """`workers` decoding processes; leaving the context ends them."""

    def __init__(self, workers: int, settings: Settings, secret: bytes) -> None:
        self.size, self.settings, self.secret = max(1, workers), settings, secret
        self.workers = [Worker(settings, secret) for _ in range(self.size)]
        self.free: SimpleQueue[Worker] = SimpleQueue()
        for worker in self.workers:
            self.free.put(worker)
        self.threads = ThreadPoolExecutor(self.size, thread_name_prefix="prepare")

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        for worker in self.workers:
            worker.stop()
        self.threads.shutdown(wait=True)
        for worker in self.workers:
            worker.close()

    @property
    def frames_in_flight(self) -> int:
        """Frames that were read of the units at work, for a progress bar."""
        return sum(worker.frames_read for worker in self.workers)

    def call(self, function: Callable[[Worker, T], R], item: T) -> Future[R]:
        return self.threads.submit(self._with_worker, function, item)

    def _with_worker(self, function: Callable[[Worker, T], R], item: T) -> R:
        worker = self.free.get()
        try:
            return function(worker, item)
        finally:
            self.free.put(worker)

    def map(self, function: Callable[[Worker, T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
        """(item, result) in the order of the items, with a bounded number in flight."""
        waiting: deque[tuple[T, Future[R]]] = deque()
        for item in items:
            waiting.append((item, self.call(function, item)))
            if len(waiting) >= AHEAD * self.size:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()

    def as_done(self, function: Callable[[Worker, T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
        """(item, result) as they come, so that a long item keeps no other worker waiting."""
        waiting: dict[Future[R], T] = {}
        for item in items:
            waiting[self.call(function, item)] = item
            if len(waiting) >= 2 * self.size:
                yield from _ended(waiting)
        while waiting:
            yield from _ended(waiting)


def _ended(waiting: dict[Future[R], T]) -> Iterator[tuple[T, R]]:
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        yield waiting.pop(future), future.result()
