"""Which patients make up an optimizer step of DP-SGD: each has the same chance (Poisson sampling), with one image of its own.

Abadi et al. 2016, arXiv:1607.00133, with the patient as the unit; core/mae/optimizer_step.py cuts and adds up what each
of them teaches, client/dp_budget.py what the steps tell. Samples follow from the recipe's seed, which must be secret,
and another for every training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.corpus.augment import draws
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.corpus.loader import BatchDraws, Loader
from usfmae.core.corpus.sampling import generator

SAMPLING = 5  # purpose of random numbers, beside those of sampling.py, augment.py and loader.py


class PatientSampler:
    """Poisson samples of patients: each is in a step with the chance `share`, with one image of its own."""

    def __init__(self, positions: Positions, groups: Sequence[str], batch: int, seed: int) -> None:
        named = np.asarray([groups[position] for position in positions])
        self.images = [positions[named == name] for name in sorted(set(named.tolist()))]
        self.share = min(1.0, batch / len(self.images))
        self.seed = seed

    def batch(self, step: int) -> Positions:
        """Positions of the images in a step, one of each patient that is in it: (n,), n may be 0."""
        random = generator(self.seed, SAMPLING, step)
        chosen, which = random.random(len(self.images)) < self.share, random.random(len(self.images))
        places = [own[int(at * len(own))] for own, at in zip(self.images, which, strict=True)]
        return np.asarray(places, dtype=np.int64)[chosen]


class PatientLoader(Loader):
    """Makes the batch of any step of a training with patients as the unit."""

    def __init__(self, corpus: Corpus, positions: Positions, model: ModelSettings, train: TrainSettings) -> None:
        super().__init__(corpus, positions, model, train)
        self.patients = PatientSampler(positions, corpus.groups, train.batch_size, train.seed)

    def drawn(self, step: int) -> BatchDraws:
        positions, settings, size = self.patients.batch(step), self.train, self.model.image_size
        chosen = draws(len(positions), self.corpus.size, settings.augment, settings.seed, step)
        patches = (size // self.model.patch_size) ** 2
        noise = generator(settings.seed, 4, step).random((len(positions), patches), dtype=np.float32)
        return BatchDraws(step, positions, tuple(chosen), noise)
