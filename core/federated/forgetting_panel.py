"""The forgetting panel: what an encoder still knows of each organ, on a fixed public set that nobody trains on.

Per organ: masked loss; kNN and linear probe on frozen features where the organ has classes; CKA to the seed. N images,
D features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from usfmae.core.config import TrainSettings
from usfmae.core.corpus.augment import plain
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.mae.device import autocast, device_of, micro_batch
from usfmae.core.mae.model import MaskedAutoencoder
from usfmae.core.mae.optimizer_step import normalise
from usfmae.core.mae.train import chunks, evaluate

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Organ:
    """One organ of the panel: images of a corpus, with classes and a grouped split of them where there are any."""

    name: str
    corpus: Corpus
    measured: Positions  # images that the loss, CKA and the probe's test use
    fitted: Positions  # images the probe is fitted on; shares no group with `measured`
    labels: Labels | None = None  # (len(corpus),) classes, -1 where an image has none


@dataclass(frozen=True)
class Reading:
    """What the panel says of one encoder and organ; `knn` and `probe` are balanced accuracies, None without classes."""

    loss: float
    knn: float | None = None
    probe: float | None = None
    cka: float | None = None  # to the seed's features on the same images

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


def read(
    model: MaskedAutoencoder, organ: Organ, settings: TrainSettings, seed_features: Floats | None = None
) -> tuple[Reading, Floats]:
    """The reading of one organ, and the features (N, D) it rests on. Without `seed_features` there is no CKA."""
    loss = evaluate(model, organ.corpus, organ.measured, settings)
    measured = features(model, organ.corpus, organ.measured, settings)
    similar = cka(measured, seed_features) if seed_features is not None else None
    if organ.labels is None:
        return Reading(loss, cka=similar), measured
    fitted = features(model, organ.corpus, organ.fitted, settings)
    known, truth = organ.labels[organ.fitted], organ.labels[organ.measured]
    fit, test = fitted[known >= 0], measured[truth >= 0]
    known, truth = known[known >= 0], truth[truth >= 0]
    return Reading(loss, knn(fit, known, test, truth), linear_probe(fit, known, test, truth), similar), measured


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


def knn(fit: Floats, known: Labels, test: Floats, truth: Labels, neighbours: int = 10) -> float:
    """Balanced accuracy of the `neighbours` nearest by cosine, each voting with its similarity."""
    fit, test = _standard(fit, fit), _standard(test, fit)
    near = _unit(test) @ _unit(fit).T  # (N, M)
    order = np.argsort(-near, axis=1, kind="stable")[:, :neighbours]
    votes = np.zeros((len(test), int(known.max()) + 1))
    for column in order.T:
        np.add.at(votes, (np.arange(len(test)), known[column]), 1 + near[np.arange(len(test)), column])
    return balanced_accuracy(votes.argmax(axis=1), truth)


def linear_probe(fit: Floats, known: Labels, test: Floats, truth: Labels, ridge: float = 1.0) -> float:
    """Balanced accuracy of class-balanced ridge regression on one-hot targets: closed form, hence exact and quick."""
    x, targets = _standard(fit, fit), np.eye(int(known.max()) + 1)[known]
    weights = (1 / np.maximum(targets.sum(axis=0), 1))[known][:, None] * len(known) / targets.shape[1]
    centre = (weights * targets).sum(axis=0) / weights.sum()
    penalty = ridge * len(x) * np.eye(x.shape[1])
    solution = np.linalg.solve(x.T @ (weights * x) + penalty, x.T @ (weights * (targets - centre)))
    return balanced_accuracy((_standard(test, fit) @ solution + centre).argmax(axis=1), truth)


def balanced_accuracy(predicted: Labels, truth: Labels) -> float:
    """Mean recall over the classes that occur."""
    return float(np.mean([(predicted[truth == k] == k).mean() for k in np.unique(truth)]))


def cka(x: Floats, y: Floats) -> float:
    """Linear centred kernel alignment of two feature sets (N, D), (N, E), 0 to 1 (Kornblith et al. 2019)."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    scale = float(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return float(np.linalg.norm(x.T @ y) ** 2 / scale) if scale else 0.0


def backward_transfer(seed: Mapping[str, Reading], now: Mapping[str, Reading], organs: Sequence[str]) -> float:
    """Mean relative change of the old organs' loss since the seed: below 0 the new organs helped, above 0 they cost."""
    return float(np.mean([now[organ].loss / seed[organ].loss - 1 for organ in organs]))


def _standard(x: Floats, fit: Floats) -> Floats:
    return np.asarray((x - fit.mean(axis=0)) / np.maximum(fit.std(axis=0), 1e-6))


def _unit(x: Floats) -> Floats:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))
