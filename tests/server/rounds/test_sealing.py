"""The aggregator's side of a sealed round: what it refuses of its own settings, and of a custodian that lies."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from usfmae.core.config.coordinator import CoordinatorSettings, GateSettings
from usfmae.core.errors import ConfigError, PolicyError
from usfmae.core.federated.admission import Comparison, Prior
from usfmae.core.federated.rules.base import MergingRule
from usfmae.core.federated.sealed.sealed_round import Opening, Yardstick
from usfmae.server.bootstrap import NewFederation, create
from usfmae.server.rounds import sealing
from usfmae.server.rounds.commit import moved_weights
from usfmae.server.rounds.sealing import Judged, check_length

SITES = ("a", "b", "c", "d")


def judged(directions: np.ndarray) -> Judged:
    replies = tuple({"site": site} for site in SITES)
    opening = Opening("c", 1, "base", "t", 10, 1.0, replies, Yardstick(Prior(), 1.0, GateSettings()), "")
    return Judged(opening, {}, Comparison({}, {}, {}, 1.0), directions, {})


def test_a_sum_as_long_as_it_was_judged_is_taken():
    updates = np.random.default_rng(1).normal(size=(4, 500)) + 1
    check_length(judged(updates @ updates.T), SITES, float(np.square(updates.sum(0)).sum()))
    check_length(judged(updates @ updates.T), SITES[:3], float(np.square(updates[:3].sum(0)).sum()))


def test_a_custodian_that_gives_out_another_sum_is_found():
    updates = np.random.default_rng(1).normal(size=(4, 500)) + 1
    with pytest.raises(PolicyError) as caught:
        check_length(judged(updates @ updates.T), SITES, 500 * 2**32 / 12)  # masks that fit nothing
    assert "gives out a sum" in str(caught.value)


@pytest.mark.parametrize("changed", [{"merge": {"rule": "median"}}, {"merge": {"rule": "trimmed"}}])
def test_rules_that_need_each_sites_values_cannot_be_sealed(changed):
    with pytest.raises(ConfigError) as caught:
        sealing.checked(CoordinatorSettings.model_validate(changed))
    assert "never shows" in str(caught.value)


def test_a_rule_that_does_not_say_the_mean_is_enough_cannot_be_sealed(monkeypatch):
    monkeypatch.setattr(sealing, "rule_for", MergingRule)
    with pytest.raises(ConfigError):
        sealing.checked(CoordinatorSettings())


@pytest.mark.parametrize("rule", ["auto", "fedavg", "fedprox", "fedavgm", "fedadam"])
def test_rules_of_the_mean_can_be_sealed(rule):
    assert sealing.checked(CoordinatorSettings.model_validate({"merge": {"rule": rule}})).merge.rule == rule


def test_a_sealed_round_waits_for_three():
    assert sealing.checked(CoordinatorSettings()).rounds.quorum == 3


def test_a_federation_whose_rule_cannot_be_sealed_is_not_even_made(tmp_path):
    wanted = ["rounds.sealed=true", "merge.rule=median"]
    with pytest.raises(ConfigError) as caught:
        create(tmp_path / "federation", NewFederation("north"), wanted)
    assert "never shows" in str(caught.value) and not (tmp_path / "federation").exists()


def test_codes_are_scaled_by_the_weights_that_move():
    """A campaign of the last block moves few weights by much: a unit for all of them would cut every code."""
    settings = CoordinatorSettings.model_validate({"model": {"depth": 3}, "train": {"dp": {"noise": 1.0, "blocks": 1}}})

    shapes = {"blocks.0.w": (5, 5), "blocks.2.w": (5, 5), "norm.weight": (5,), "patch_embed.proj.weight": (5, 3)}
    base: Any = SimpleNamespace(shapes=shapes)
    assert moved_weights(base, settings) == 30
    assert moved_weights(base, CoordinatorSettings()) == 70
