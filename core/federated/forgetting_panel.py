"""The forgetting panel: what an encoder still knows of each organ, on a fixed public set that nobody trains on.

Per organ: masked loss, read with a decoder that was refitted on the frozen encoder (the same first weights, images and
steps for every encoder that is compared) and, beside it, with the seed's decoder as it was; kNN and linear probe on
frozen features where the organ has classes; CKA to the seed. N images, D features, K classes.

Why refit: a loss belongs to an encoder and a decoder. With the seed's decoder it rises as soon as an encoder moves, so
a panel that reads it so takes learning for forgetting (docs/results/continual.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from usfmae.core.bench import heads
from usfmae.core.config import TrainSettings
from usfmae.core.corpus.augment import plain
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.mae.device import autocast, device_of, micro_batch
from usfmae.core.mae.device_batches import normalise
from usfmae.core.mae.evaluation import chunks
from usfmae.core.mae.model import MaskedAutoencoder

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Organ:
    """One organ of the panel: images of a corpus, with classes and a grouped split of them where there are any."""

    name: str
    corpus: Corpus
    measured: Positions  # images that the losses, CKA and the probe's test use
    fitted: Positions  # images that probe and decoder are fitted on; shares no group with `measured` where it can
    labels: Labels | None = None  # (len(corpus),) classes, -1 where an image has none


@dataclass(frozen=True)
class Reading:
    """What the panel says of one encoder and organ; `knn` and `probe` are balanced accuracies, None without classes."""

    loss: float  # with the decoder that was refitted on this encoder
    seed_decoder_loss: float | None = None  # with the seed's decoder, which does not follow
    knn: float | None = None
    probe: float | None = None
    cka: float | None = None  # to the seed's features on the same images

    @property
    def accuracy(self) -> float | None:
        """Mean of the two probes; None without classes."""
        return None if self.knn is None or self.probe is None else (self.knn + self.probe) / 2

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


def probes(
    model: MaskedAutoencoder, organ: Organ, settings: TrainSettings, seed_features: Floats | None = None
) -> tuple[dict[str, float | None], Floats]:
    """CKA, kNN and linear probe of an organ as a `Reading` has them, and the features (N, D) they rest on.

    Without `seed_features` there is no CKA, without classes no probe.
    """
    measured = features(model, organ.corpus, organ.measured, settings)
    similar = cka(measured, seed_features) if seed_features is not None else None
    if organ.labels is None:
        return {"cka": similar}, measured
    fitted = features(model, organ.corpus, organ.fitted, settings)
    labels, truth = organ.labels[organ.fitted], organ.labels[organ.measured]
    fit, test = fitted[labels >= 0], measured[truth >= 0]
    labels, truth = labels[labels >= 0], truth[truth >= 0]
    return {
        "cka": similar,
        "knn": knn(fit, labels, test, truth),
        "probe": linear_probe(fit, labels, test, truth),
    }, measured


@torch.no_grad()
def features(model: MaskedAutoencoder, corpus: Corpus, positions: Positions, settings: TrainSettings) -> Floats:
    """Mean patch token of whole images, frozen encoder: (N, D)."""
    device, rows = device_of(model), []
    for chosen in chunks(positions, micro_batch(settings, device)):
        pixels = plain(corpus.fetch(chosen).pixels, model.settings.image_size)
        with autocast(device, settings.precision):
            tokens = model.features(normalise(pixels, settings, device))  # (B, 1 + L, D)
        rows.append(tokens[:, 1:].float().mean(dim=1).cpu().numpy())
    return np.concatenate(rows).astype(np.float64)


def knn(fit: Floats, labels: Labels, test: Floats, truth: Labels, neighbours: int = 10) -> float:
    """Balanced accuracy of the nearest neighbours, features standardised."""
    votes = heads.knn(heads.standardised(fit, fit), labels, heads.standardised(test, fit), _classes(labels), neighbours)
    return heads.balanced_accuracy(votes.argmax(axis=1), truth)


def linear_probe(fit: Floats, labels: Labels, test: Floats, truth: Labels) -> float:
    """Balanced accuracy of class-balanced ridge regression, features standardised."""
    answers = heads.ridge(heads.standardised(fit, fit), labels, heads.standardised(test, fit), _classes(labels))
    return heads.balanced_accuracy(answers.argmax(axis=1), truth)


def _classes(labels: Labels) -> int:
    return int(labels.max()) + 1


def cka(x: Floats, y: Floats) -> float:
    """Linear centred kernel alignment of two feature sets (N, D), (N, E), 0 to 1 (Kornblith et al. 2019)."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    scale = float(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return float(np.linalg.norm(x.T @ y) ** 2 / scale) if scale else 0.0


def backward_transfer(seed: Mapping[str, Reading], now: Mapping[str, Reading], organs: Sequence[str]) -> float:
    """Mean relative change of the old organs' loss since the seed: below 0 the new organs helped, above 0 they cost."""
    return float(np.mean([now[organ].loss / seed[organ].loss - 1 for organ in organs]))
