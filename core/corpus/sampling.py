"""Which images make up optimizer step g: a function of (seed, g), so a run needs no sampler state to go on."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from usfmae.core.corpus.batch import Positions


def generator(*key: int) -> np.random.Generator:
    """Random numbers that depend on the key alone: (seed, purpose, step)."""
    return np.random.default_rng(np.random.SeedSequence(key))


def order_seed(secret: bytes, campaign: str, seed: int) -> int:
    """The seed of a site's order of images, masks and augmentation: HMAC-SHA256 of the campaign's under its secret.

    Nobody without the secret can foresee or choose what a step draws. The same campaign always gives the same seed, so
    a round that was killed ends with the same bits. Without a secret (a simulated site) it is the campaign's own.
    """
    if not secret:
        return seed
    message = f"usfmae order of images, masks and augmentation\0{campaign}\0{seed}"
    return int.from_bytes(hmac.digest(secret, message.encode(), "sha256")[:16], "big")


class Sampler:
    """An endless stream of epochs, cut into batches; an epoch of N draws sees every image once.

    With `temperature` T a data set of n images gets a share of the draws in proportion to n ** (1 / T): 1 leaves
    the corpus as it is, larger values draw large data sets less often and small ones more.
    """

    def __init__(
        self, positions: Positions, datasets: Sequence[str], batch: int, seed: int, temperature: float = 1.0
    ) -> None:
        self.batch_size, self.seed, self.count = batch, seed, len(positions)
        names = np.asarray([datasets[p] for p in positions])
        self.members = [positions[names == name] for name in sorted(set(names.tolist()))]
        self.quotas = shares([len(m) for m in self.members], temperature)
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def batch(self, step: int) -> Positions:
        """Positions of the images in optimizer step `step`: (batch,)."""
        return self.between(step, step + 1)

    def between(self, start: int, stop: int) -> Positions:
        """Positions of every image drawn in the optimizer steps start..stop - 1, in order: (N,)."""
        places = np.arange(start * self.batch_size, stop * self.batch_size)
        epochs, offsets = np.divmod(places, self.count)
        return np.concatenate([self._epoch(int(e))[offsets[epochs == e]] for e in np.unique(epochs)])

    def _draw_epoch(self, epoch: int) -> Positions:
        """Each data set goes through its own shuffled rounds, so none of its images waits for more than one."""
        drawn = []
        for number, (members, quota) in enumerate(zip(self.members, self.quotas, strict=True)):
            places = np.arange(epoch * quota, (epoch + 1) * quota)
            rounds, offsets = np.divmod(places, len(members))
            for r in np.unique(rounds):
                shuffled = generator(self.seed, 1, number, int(r)).permutation(members)
                drawn.append(shuffled[offsets[rounds == r]])
        return generator(self.seed, 2, epoch).permutation(np.concatenate(drawn))


def shares(counts: Sequence[int], temperature: float) -> list[int]:
    """Split sum(counts) draws in proportion to counts ** (1 / temperature), by largest remainder, at least one each."""
    total = sum(counts)
    weights = np.asarray(counts, dtype=np.float64) ** (1 / temperature)
    exact = weights / weights.sum() * total
    quotas = np.maximum(np.floor(exact), 1).astype(int)
    for index in np.argsort(quotas - exact, kind="stable")[: max(0, total - int(quotas.sum()))]:
        quotas[index] += 1
    while quotas.sum() > total:
        quotas[quotas.argmax()] -= 1
    return [int(q) for q in quotas]
