"""Batches made ready in a thread while the model computes: fetch, augment, mask noise."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.corpus.augment import Draw, augment, draws
from usfmae.core.corpus.batch import Corpus, MixedPixels, Positions, by_channels
from usfmae.core.corpus.sampling import Sampler, generator
from usfmae.core.types import Pixels

AHEAD = 2  # batches made before they are asked for
Made = TypeVar("Made")


@dataclass(frozen=True)
class BatchDraws:
    """What one process's rows of an optimizer step are drawn to be, before a pixel is read."""

    step: int
    positions: Positions  # (B,) in the corpus
    draws: tuple[Draw, ...]  # of the augmentation, B of them
    noise: NDArray[np.float32]  # (B, L) mask noise


@dataclass(frozen=True)
class Prepared:
    """One process's rows of one optimizer step."""

    step: int
    pixels: Pixels | MixedPixels  # (B, S, S, C) uint8, augmented; mixed where some have colour and some have none
    noise: NDArray[np.float32]  # (B, L) mask noise
    ids: tuple[str, ...]  # of the B images
    drawn: BatchDraws | None = None  # set where the pixels are as they lie in the corpus, still to be augmented

    def __len__(self) -> int:
        return len(self.pixels)


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

    def drawn(self, step: int) -> BatchDraws:
        """Draws for the whole global batch, cut to this process's rows: any number of processes sees the same."""
        settings, size = self.train, self.model.image_size
        chosen = draws(settings.batch_size, self.corpus.size, settings.augment, settings.seed, step)[self.rows]
        patches = (size // self.model.patch_size) ** 2
        noise = generator(settings.seed, 4, step).random((settings.batch_size, patches), dtype=np.float32)[self.rows]
        return BatchDraws(step, self.sampler.batch(step)[self.rows], tuple(chosen), noise)

    def prepare(self, step: int) -> Prepared:
        """The augmented batch, each image in its own channels: gray ones among colour are widened by the model's device."""
        drawn = self.drawn(step)
        images = self.corpus.images(drawn.positions)

        def augmented(rows: Positions) -> Pixels:
            chosen = [drawn.draws[row] for row in rows]
            return augment([images[row] for row in rows], chosen, self.model.image_size, self.train.augment)

        return Prepared(step, by_channels(images, augmented), drawn.noise, self._ids(drawn))

    def unchanged(self, step: int) -> Prepared:
        """The batch as it lies in the corpus, to be augmented where it is trained on."""
        drawn = self.drawn(step)
        images = self.corpus.images(drawn.positions)

        def stacked(rows: Positions) -> Pixels:
            return np.stack([np.atleast_3d(images[row]) for row in rows])

        return Prepared(step, by_channels(images, stacked), drawn.noise, self._ids(drawn), drawn)

    def _ids(self, drawn: BatchDraws) -> tuple[str, ...]:
        return tuple(self.corpus.ids[p] for p in drawn.positions)

    def batches(self, start: int, stop: int, make: Callable[[int], Made] | None = None) -> Iterator[tuple[Made, float]]:
        """What `make` (else `prepare`) gives for steps start..stop - 1, each with the seconds the caller had to wait."""
        ready: queue.Queue[Made | BaseException] = queue.Queue(AHEAD)
        closed, made = threading.Event(), make or cast(Callable[[int], Made], self.prepare)
        thread = threading.Thread(target=_fill, args=(ready, closed, range(start, stop), made), daemon=True)
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
    ready: queue.Queue[Made | BaseException], closed: threading.Event, steps: range, make: Callable[[int], Made]
) -> None:
    for step in steps:
        try:
            item: Made | BaseException = make(step)
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
