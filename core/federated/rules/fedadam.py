"""FedAdam: Adam on the merged update, without bias correction (Reddi et al. 2021, arXiv:2003.00295, Algorithm 2).

The second moment begins at tau squared, as the algorithm asks.
"""

from __future__ import annotations

import numpy as np

from usfmae.core.federated.rules.base import MergingRule, Values, weighted_mean


class Rule(MergingRule):
    memory = ("first", "second")
    from_mean = True

    @property
    def default_rate(self) -> float:
        return 1e-3  # a step moves each weight by about this much, whatever the updates' length

    def start(self, name: str) -> float:
        return self.settings.adaptivity**2 if name == "second" else 0.0

    def merge(self, base: Values, trained: Values, weights: Values, memory: dict[str, Values]) -> Values:
        step = weighted_mean(trained, weights) - base
        first, second = memory["first"], memory["second"]
        first *= self.settings.momentum
        first += (1 - self.settings.momentum) * step
        second *= self.settings.second_momentum
        second += (1 - self.settings.second_momentum) * step**2
        return base + self.rate * first / (np.sqrt(second) + self.settings.adaptivity)
