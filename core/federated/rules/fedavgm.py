"""FedAvgM: momentum on the merged update (Hsu et al. 2019, arXiv:1909.06335)."""

from __future__ import annotations

from usfmae.core.federated.rules.base import MergingRule, Values, weighted_mean


class Rule(MergingRule):
    memory = ("velocity",)
    from_mean = True

    @property
    def default_rate(self) -> float:
        return 1 - self.settings.momentum  # the velocity of a steady direction is 1 / (1 - momentum) of its updates

    def merge(self, base: Values, trained: Values, weights: Values, memory: dict[str, Values]) -> Values:
        velocity = memory["velocity"]
        velocity *= self.settings.momentum
        velocity += weighted_mean(trained, weights) - base
        return base + self.rate * velocity
