"""How much of what a model was trained on shows in it: attacks on membership with intervals, and what a change spans.

Membership (Shokri et al. 2017, arXiv:1610.05820; by loss, Yeom et al. 2018, arXiv:1709.01604): a score an image, whose
areas under the curve over images and over patients are compared with what chance gives when patients are shuffled. The
canary bound is a privacy audit in one training run (Steinke et al. 2023, arXiv:2305.08846). The span of a change is what
the closed form of gradient inversion reads: the gradient of the patch projection is a sum of outer products with the
patches it was made of. NumPy alone but for the scores, which need the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from usfmae.core.config import TrainSettings
from usfmae.core.corpus.augment import plain
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.mae.device import device_of
from usfmae.core.mae.device_batches import normalise
from usfmae.core.mae.model import MaskedAutoencoder

Scores = NDArray[np.float64]

REPEATS = 1000  # of the bootstrap over patients, and of the shuffled null
VIEWS = 4  # masks an image is judged under
RANKS = (1, 2, 4, 8, 16, 32)  # of the span that patches are projected on
FEW = 32  # directions; a change that so many patches made, or fewer, lies in them
FLAT = 0.05  # standard deviation of a normalised patch that shows nothing


@dataclass(frozen=True)
class Separation:
    """How well scores tell members from others: area under the curve with a 95 % interval over patients."""

    auc: float
    low: float
    high: float
    chance: float  # share of shuffled worlds with an area at least as far from one half
    members: int
    others: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def separation(members: Scores, others: Scores, seed: int = 0) -> Separation:
    """Of one score a patient or image (M,) and (N,); a member's is thought to be higher."""
    random = np.random.default_rng(seed)
    value = area(members, others)
    drawn = [area(random.choice(members, len(members)), random.choice(others, len(others))) for _ in range(REPEATS)]
    pool = np.concatenate([members, others])
    shuffled = (random.permutation(pool) for _ in range(REPEATS))
    null = np.array([area(one[: len(members)], one[len(members) :]) for one in shuffled])
    low, high = np.quantile(drawn, (0.025, 0.975))
    chance = (1 + int((np.abs(null - 0.5) >= abs(value - 0.5)).sum())) / (REPEATS + 1)
    return Separation(value, float(low), float(high), chance, len(members), len(others))


def area(members: Scores, others: Scores) -> float:
    """Area under the curve: how often a member's score is above another's, ties half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, "left") + np.searchsorted(ordered, members, "right")
    return float(below.sum() / (2 * len(members) * len(others)))


def by_patient(scores: Scores, groups: Sequence[str]) -> Scores:
    """The mean score of each patient, in the order of their names."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    return np.asarray(np.bincount(index, scores) / np.bincount(index, minlength=len(names)))


def epsilon_bound(right: int, guesses: int, confidence: float = 0.95) -> float:
    """Lower bound of epsilon (pure DP) when `right` of `guesses` coins of canaries were guessed.

    An epsilon-private training lets nobody guess a coin better than e^epsilon / (1 + e^epsilon), so that the lower end
    of the Clopper-Pearson interval of the share gives the bound; 0 where it is no better than chance.
    """
    share = _binomial_low(right, guesses, 1 - confidence)
    return math.log(share / (1 - share)) if 0.5 < share < 1 else 0.0


def _binomial_low(right: int, guesses: int, alpha: float) -> float:
    """The share under which `right` or more of `guesses` have the chance alpha; by bisection."""
    if right == 0:
        return 0.0

    def chance(share: float) -> float:
        logs = [
            math.lgamma(guesses + 1) - math.lgamma(k + 1) - math.lgamma(guesses - k + 1)
            + k * math.log(share) + (guesses - k) * math.log1p(-share)
            for k in range(right, guesses + 1)
        ]  # fmt: skip
        return sum(math.exp(one) for one in logs)

    low, high = 1e-12, 1 - 1e-12
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle) < alpha else (low, middle)
    return low


@torch.no_grad()
def image_losses(
    model: MaskedAutoencoder, corpus: Corpus, positions: Positions, settings: TrainSettings, views: int = VIEWS
) -> Scores:
    """Mean masked loss of each image (N,) under a few masks, the same for every image; without augmentation."""
    patches = (model.settings.image_size // model.settings.patch_size) ** 2
    masks = torch.rand(views, patches, generator=torch.Generator().manual_seed(0)).to(device_of(model))
    was_training, losses = model.training, np.empty(len(positions))
    model.eval()
    for row, position in enumerate(positions):
        pixels = plain(corpus.fetch(np.array([position])).pixels, model.settings.image_size)
        images = normalise(pixels, settings, device_of(model)).expand(views, -1, -1, -1)
        losses[row] = float(model(images, masks, full=False)[0])
    model.train(was_training)
    return losses


@torch.no_grad()
def moved_features(
    before: MaskedAutoencoder, after: MaskedAutoencoder, corpus: Corpus, positions: Positions, settings: TrainSettings
) -> Scores:
    """How far each image's mean feature went from one encoder to the next, in lengths of the feature: (N,)."""
    moved = np.empty(len(positions))
    for row, position in enumerate(positions):
        pixels = plain(corpus.fetch(np.array([position])).pixels, before.settings.image_size)
        images = normalise(pixels, settings, device_of(before))
        old, new = (model.features(images)[0, 1:].mean(0) for model in (before, after))
        moved[row] = float((new - old).norm() / old.norm().clamp_min(1e-12))
    return moved


# --- what a change of the patch projection spans


@dataclass(frozen=True)
class Span:
    """What the change of a patch projection tells of the patches it was made of."""

    rank_one: float  # share of its squares along its first direction
    effective_rank: float  # exponential of the entropy of these shares
    beyond_few: float  # share of its squares outside its first FEW directions
    advantage: float  # dB by which it spans a patch of a drawn image better than any patch of others
    patch: int  # the drawn patch that it spans best
    spanned: Scores  # (P,), that patch as the change gives it

    def figures(self) -> dict[str, float]:
        return {
            "rank_one": round(self.rank_one, 4),
            "effective_rank": round(self.effective_rank, 2),
            "beyond_few": float(f"{self.beyond_few:.2g}"),
            "advantage_db": round(self.advantage, 2),
        }


def span(change: Scores, drawn: Scores, others: Scores) -> Span:
    """Of a change (D, P) and normalised patches of drawn (M, P) and of other images (N, P)."""
    _, lengths, directions = np.linalg.svd(change, full_matrices=False)
    shares = lengths**2 / max(float((lengths**2).sum()), 1e-300)
    live = shares[shares > 0]
    best = (-math.inf, 0, np.zeros(change.shape[1]))
    for rank in (r for r in RANKS if r <= len(lengths) // 2 and shares[r - 1] > 0):
        basis = directions[:rank]
        mine, theirs = _left_over(drawn, basis), _left_over(others, basis)
        patch = int(mine.argmin())
        advantage = 20 * math.log10(max(float(theirs.min()), 1e-9) / max(float(mine[patch]), 1e-9))
        if advantage > best[0]:
            best = (advantage, patch, drawn[patch] @ basis.T @ basis)
    entropy = -float((live * np.log(live)).sum())
    beyond = float(shares[min(FEW, len(shares) // 2) :].sum())
    return Span(float(shares[0]), math.exp(entropy), beyond, max(best[0], 0.0), best[1], best[2])


def _left_over(patches: Scores, basis: Scores) -> Scores:
    """What a basis (R, P) leaves of each patch (N, P), in lengths of the patch; 1 for one that shows nothing."""
    rest = np.linalg.norm(patches - patches @ basis.T @ basis, axis=1)
    rest /= np.maximum(np.linalg.norm(patches, axis=1), 1e-12)
    return np.asarray(np.where(patches.std(axis=1) > FLAT, rest, 1.0))


def report(scores: Mapping[str, tuple[Scores, Scores]], groups: tuple[Sequence[str], Sequence[str]]) -> dict[str, Any]:
    """For each attack, its separation over images and over patients. `scores`: of members and others, an image each."""
    result: dict[str, Any] = {}
    for name, (members, others) in scores.items():
        patients = separation(by_patient(members, groups[0]), by_patient(others, groups[1]))
        result[name] = {"images": separation(members, others).as_dict(), "patients": patients.as_dict()}
    return result


def worst(membership: Mapping[str, Any]) -> dict[str, float]:
    """Of all attacks on patients, the one whose interval begins highest."""
    patients = [attack["patients"] for attack in membership.values()]
    top = max(patients, key=lambda one: one["low"])
    return {"auc": top["auc"], "low": top["low"], "high": top["high"]}
