"""Batches made ready in a thread while the model computes: fetch, augment, mask noise."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.corpus.augment import augment, draws
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.corpus.sampling import Sampler, generator
from usfmae.core.types import Pixels

AHEAD = 2  # batches made before they are asked for


@dataclass(frozen=True)
class Prepared:
    """One process's rows of one optimizer step."""

    step: int
    pixels: Pixels  # (B, S, S, C) uint8, augmented
    noise: NDArray[np.float32]  # (B, L) mask noise
    ids: tuple[str, ...]  # of the B images


class Loader:
    """Makes the batch of any step. `rank` of `world` processes takes its rows of the same global batch."""

    def __init__(
        self,
        corpus: Corpus,
        positions: Positions,
        model: ModelSettings,
        train: TrainSettings,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.corpus, self.model, self.train = corpus, model, train
        self.sampler = Sampler(positions, corpus.datasets, train.batch_size, train.seed, train.temperature)
        rows = train.batch_size
        self.rows = slice(rows * rank // world, rows * (rank + 1) // world)

    def prepare(self, step: int) -> Prepared:
        """Draws for the whole global batch, work for this process's rows: any number of processes sees the same."""
        settings, size = self.train, self.model.image_size
        chosen = draws(settings.batch_size, self.corpus.size, settings.augment, settings.seed, step)[self.rows]
        patches = (size // self.model.patch_size) ** 2
        noise = generator(settings.seed, 4, step).random((settings.batch_size, patches), dtype=np.float32)[self.rows]
        positions = self.sampler.batch(step)[self.rows]
        pixels = augment(self.corpus.fetch(positions).pixels, chosen, size, settings.augment)
        return Prepared(step, pixels, noise, tuple(self.corpus.ids[p] for p in positions))

    def batches(self, start: int, stop: int) -> Iterator[tuple[Prepared, float]]:
        """Batches of steps start..stop - 1, each with the seconds that the caller had to wait for it."""
        ready: queue.Queue[Prepared | BaseException] = queue.Queue(AHEAD)
        closed = threading.Event()
        thread = threading.Thread(target=self._fill, args=(ready, closed, start, stop), daemon=True)
        thread.start()
        try:
            for _ in range(start, stop):
                began = time.perf_counter()
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item, time.perf_counter() - began
        finally:
            closed.set()
            thread.join()

    def _fill(
        self, ready: queue.Queue[Prepared | BaseException], closed: threading.Event, start: int, stop: int
    ) -> None:
        for step in range(start, stop):
            try:
                item: Prepared | BaseException = self.prepare(step)
            except BaseException as error:  # handed to the caller, which raises it
                item = error
            while not closed.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if closed.is_set() or isinstance(item, BaseException):
                return
