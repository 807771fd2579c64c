"""Trimmed mean, value by value: the largest and smallest shares are cut off (Yin et al. 2018, arXiv:1803.01498).

Unweighted, so that no site buys influence with images; fewer sites than one can cut give the plain mean.
"""

from __future__ import annotations

import numpy as np

from usfmae.server.merging.base import MergingRule, Values


class Rule(MergingRule):
    def merge(self, base: Values, trained: Values, weights: Values, memory: dict[str, Values]) -> Values:
        cut = int(self.settings.trim * len(trained))
        kept = np.sort(trained, axis=0)[cut : len(trained) - cut]
        return base + self.settings.rate * (kept.mean(axis=0) - base)
