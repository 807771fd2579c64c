"""Merging rules: one file each, one class named Rule with `merge`; `core.config.coordinator.Rule` lists the names."""

from __future__ import annotations

import importlib

from usfmae.core.config.coordinator import MergeSettings
from usfmae.core.federated.rules.base import MergingRule


def rule_for(settings: MergeSettings) -> MergingRule:
    """The rule that the settings name."""
    module = importlib.import_module(f"usfmae.core.federated.rules.{settings.rule}")
    rule: MergingRule = module.Rule(settings)
    return rule
