"""Median, value by value (Yin et al. 2018, arXiv:1803.01498): unweighted, bears up to half the sites lying."""

from __future__ import annotations

import numpy as np

from usfmae.core.federated.rules.base import MergingRule, Values


class Rule(MergingRule):
    weighted = False

    def merge(self, base: Values, trained: Values, weights: Values, memory: dict[str, Values]) -> Values:
        return base + self.rate * (np.median(trained, axis=0) - base)
