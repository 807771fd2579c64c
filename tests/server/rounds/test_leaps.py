"""One enrolled site tries to make an encoder that every site would refuse."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.conftest import Federation, nudge
from usfmae.client.rounds import model_inspection
from usfmae.client.rounds.campaigns import AcceptedEncoder
from usfmae.core.federated.continuity import Moved, continues, cuts, longest_step
from usfmae.core.federated.local_round import Trained

WIDE = {"gate.clip_limit": 1e6, "gate.norm_limit": 1e6, "gate.base_limit": 100, "gate.merged_limit": 1e6}


def pushing(tensor: str, step: float) -> Any:
    """The first site sends nothing but a step of this length in one tensor; the others are honest."""

    def train(place: Path, request: Any, encoder: dict[str, np.ndarray], decoder: Path) -> Trained:
        done = nudge(place, request, encoder, decoder)
        if place.name != "site-0":
            return done
        before = encoder[tensor]
        way = -before if step < 0 else np.ones_like(before)
        moved = before + (abs(step) * way / np.linalg.norm(way)).astype(np.float32)
        return dataclasses.replace(done, encoder={**encoder, tensor: moved})

    return train


@pytest.mark.parametrize(
    ("tensor", "step"),
    [("pos_embed", 30.0), ("cls_token", 40.0), ("norm.bias", 60.0), ("patch_embed.proj.weight", -16.0)],
)
def test_no_site_makes_an_encoder_that_all_sites_refuse(tmp_path: Path, tensor: str, step: float) -> None:
    federation = Federation(tmp_path, 3, pushing(tensor, step), **WIDE)
    federation.run(1)

    before, after = federation.encoder(0), federation.encoder(1)
    assert np.array_equal(after["pos_embed"], before["pos_embed"])
    norms = {name: float(np.linalg.norm(values)) for name, values in before.items()}
    parent = AcceptedEncoder({}, norms, {name: list(v.shape) for name, v in before.items()}, 0.0)
    file = federation.home.checkpoint(1)
    model_inspection.inspect(file, federation.ledger.last_round().result, parent)
    round_ = federation.ledger.last_round()
    assert round_.summary.get("leaps") == (None if tensor == "pos_embed" else [tensor])


def test_what_sites_would_take_is_merged_as_it_is(tmp_path: Path) -> None:
    one, other = (
        Federation(tmp_path / name, 3, **{"gate.tensor_limit": limit}) for name, limit in (("a", 2.9), ("b", 1e6))
    )
    assert one.run(2) == other.run(2)
    assert "leaps" not in one.ledger.last_round().summary


@pytest.mark.parametrize("before", [0.0, 0.4, 1.0, 1.1, 27.0])
@pytest.mark.parametrize("towards", [-1, 1])
def test_the_longest_step_continues_whichever_way_it_goes(before: float, towards: int) -> None:
    assert continues(before, abs(before + towards * longest_step(before, 2.9)), 3.0)


def test_only_leaps_are_cut() -> None:
    tensors = {
        "a": Moved(2.0, 0.5, 2.4),
        "b": Moved(2.0, 9.0, 11.0),
        "c": Moved(0.0, 0.9, 0.9),
        "d": Moved(2.0, 2.0, 0.1),
    }
    assert set(cuts(tensors, 2.9)) == {"b", "d"}
