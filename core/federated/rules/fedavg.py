"""FedAvg: the mean of what the sites trained, weighted by images (McMahan et al. 2017, arXiv:1602.05629)."""

from __future__ import annotations

from usfmae.core.federated.rules.base import MergingRule, Values, weighted_mean


class Rule(MergingRule):
    from_mean = True

    def merge(self, base: Values, trained: Values, weights: Values, memory: dict[str, Values]) -> Values:
        mean = weighted_mean(trained, weights)
        return mean if self.rate == 1 else base + self.rate * (mean - base)
