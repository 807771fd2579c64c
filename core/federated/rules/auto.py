"""The default: trimmed from four sites on, where one liar's values can be cut, and FedAvg below.

FedAvg too where rounds are sealed or sparse (`rules.rule_of_round`)."""

from __future__ import annotations

from usfmae.core.federated.rules import fedavg, trimmed
from usfmae.core.federated.rules.base import MergingRule, Values

MANY = 4  # sites from which cutting the outermost value on each side leaves a mean of two or more


class Rule(MergingRule):
    from_mean = True  # a sealed round gives it one update, the mean: FedAvg

    def for_sites(self, count: int) -> MergingRule:
        return trimmed.Rule(self.settings) if count >= MANY else fedavg.Rule(self.settings)

    def merge(self, base: Values, trained: Values, weights: Values, memory: dict[str, Values]) -> Values:
        return self.for_sites(len(trained)).merge(base, trained, weights, memory)
