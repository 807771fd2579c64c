"""A release never ships an encoder that has not learned what the sites have learned since."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.virtual import home_with, honest, loop_of
from usfmae.core.errors import PolicyError
from usfmae.server.layout import Federation
from usfmae.server.ledger import Ledger, Round, RoundState
from usfmae.server.releases.release import choose, trained_seed, unlearned, witness
from usfmae.server.simulate import populate


def rounds(losses: list[float], start: float = 1.42) -> list[Round]:
    before = [start, *losses[:-1]]
    return [
        Round(n, RoundState.COMMITTED, "b", 0, 1, 0.0, summary={"loss_before": b, "loss_after": a})
        for n, (b, a) in enumerate(zip(before, losses, strict=True), start=1)
    ]


def test_of_fourteen_rounds_that_learned_the_first_is_not_released() -> None:
    """The sites' held-out loss fell from 1.42 to 0.30; a panel read with the seed's decoder liked round 1 best."""
    falling = [1.30, 1.12, 0.95, 0.80, 0.68, 0.58, 0.51, 0.45, 0.41, 0.37, 0.35, 0.33, 0.31, 0.30]
    refused = unlearned(rounds(falling))
    assert set(refused) == set(range(1, 7)) and "11%" in refused[1]


def test_where_nothing_was_learned_or_measured_no_round_is_accused() -> None:
    assert unlearned(rounds([1.42, 1.5])) == {}
    assert unlearned(rounds([0.0, 0.0], start=0.0)) == {}


def test_what_the_sites_losses_say_stands_in_the_reason_of_a_release() -> None:
    assert witness(rounds([1.30, 1.12])) == "the last round that holds what the sites learned"
    assert "did not fall (1.420 -> 1.450 at best)" in witness(rounds([1.5, 1.45]))


def test_a_random_seed_is_known_and_a_round_can_be_asked_for(tmp_path: Path) -> None:
    home = home_with(tmp_path, None)
    loop_of(home, populate(home, 1, 8, honest)).run(2)
    ledger = Ledger(home.ledger)
    assert not trained_seed(home)
    assert choose(Federation(home, ledger, home.settings()), None, 1).round == 1
    assert choose(Federation(home, ledger, home.settings()), None).round == 2
    with pytest.raises(PolicyError, match="release of round 9"):
        choose(Federation(home, ledger, home.settings()), None, 9)
