"""Merging rules: one file each, one class named Rule with `merge`; `core.config.coordinator.Rule` lists the names."""

from __future__ import annotations

import importlib

from usfmae.core.config.coordinator import CoordinatorSettings, MergeSettings
from usfmae.core.errors import ConfigError
from usfmae.core.federated.rules.base import MergingRule


def rule_for(settings: MergeSettings) -> MergingRule:
    """The rule that the settings name."""
    module = importlib.import_module(f"usfmae.core.federated.rules.{settings.rule}")
    rule: MergingRule = module.Rule(settings)
    return rule


def rule_of_round(settings: CoordinatorSettings, updates: int) -> MergingRule:
    """The rule that merges a round of so many updates.

    Where updates are sparse, or only their mean is seen, it is the rule for one: of the values that one site sent, the
    others sent next to none, so that a rule that compares sites value by value would cut off all that was learned.
    """
    mean_only = settings.rounds.sealed or settings.rounds.encoding == "sparse"
    return rule_for(settings.merge).for_sites(1 if mean_only else updates)


def check_rule(settings: CoordinatorSettings) -> None:
    """ConfigError where the rule needs what updates of this encoding do not hold."""
    if settings.rounds.encoding == "sparse" and not rule_for(settings.merge).from_mean:
        raise ConfigError(
            f"merge.rule: {settings.merge.rule}",
            "compares sites value by value, and in sparse updates nearly all values are another site's",
            "choose auto, fedavg, fedprox, fedavgm or fedadam, or rounds.encoding=int4",
        )
