"""Trimmed mean, value by value: the largest and smallest shares are cut off (Yin et al. 2018, arXiv:1803.01498).

Unweighted, so that no site buys influence with images. At least one value is cut at each end where three sites or more
answered; fewer give the plain mean.
"""

from __future__ import annotations

import math

import numpy as np

from usfmae.core.federated.rules.base import MergingRule, Values


class Rule(MergingRule):
    weighted = False

    def merge(self, base: Values, trained: Values, weights: Values, memory: dict[str, Values]) -> Values:
        share = math.ceil(self.settings.trim * len(trained) - 1e-9)  # 0.2 of 15 is 3, not 3.0000000000000004
        cut = min(share, (len(trained) - 1) // 2)
        middle = np.sort(trained, axis=0)[cut : len(trained) - cut]
        return np.asarray(base + self.rate * (middle.mean(axis=0) - base))
