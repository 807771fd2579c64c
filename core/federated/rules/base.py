"""What a merging rule is: a function of pieces of tensors, in the order of sites, without randomness."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from usfmae.core.config.coordinator import MergeSettings

Values = NDArray[np.float64]


class MergingRule:
    """Base of every rule. `memory` names what the server keeps from round to round, one value a weight."""

    memory: tuple[str, ...] = ()
    weighted = True  # whether a site's share of the images counts; else every site counts alike
    from_mean = False  # whether the mean of the updates is all it needs: no other rule can run in a sealed round

    def __init__(self, settings: MergeSettings) -> None:
        self.settings = settings
        self.rate = self.default_rate if settings.rate is None else settings.rate

    @property
    def name(self) -> str:
        """The rule's module, as the settings and the ledger name it."""
        return type(self).__module__.rsplit(".", 1)[-1]

    @property
    def default_rate(self) -> float:
        """Server learning rate with which a merged step is about as long as the sites' updates."""
        return 1.0

    @property
    def proximal(self) -> float:
        """Strength of the pull towards the round's encoder that sites add to their loss; part of every request."""
        return 0.0

    def for_sites(self, count: int) -> MergingRule:
        """The rule for a round with this many updates."""
        return self

    def start(self, name: str) -> float:
        """What is remembered under this name, for every weight, before the first round."""
        return 0.0

    def merge(self, base: Values, trained: Values, weights: Values, memory: dict[str, Values]) -> Values:
        """The next weights of a piece.

        base (n,): the round's encoder; trained (S, n): what each site made of it, in site order; weights (S,): shares
        that sum to 1; memory: (n,) per name, as `start` says in the first round, updated in place.
        """
        raise NotImplementedError


def weighted_mean(trained: Values, weights: Values) -> Values:
    """Sum of weight * values, site after site: the same additions in the same order on every machine.

    Exact for one site: its weight is 1 and no zero is added.
    """
    total = weights[0] * trained[0]
    for weight, values in zip(weights[1:], trained[1:], strict=True):
        total += weight * values
    return np.asarray(total)
