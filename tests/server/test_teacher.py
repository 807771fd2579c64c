"""A federation whose sites predict the features of the seed, which each of them holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.server.virtual import home_with, loop_of
from usfmae.core.checkpoint import encoder_of, load
from usfmae.core.federated.messages import VerdictCode
from usfmae.server import campaign
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger
from usfmae.server.simulate import masked_autoencoder, populate


def federation(root: Path, *more: str) -> tuple[Layout, list[Path]]:
    home = home_with(root, None, *more)
    hospitals = populate(home, 2, 16, masked_autoencoder)
    loop_of(home, hospitals).run(2)
    return home, [hospital.place for hospital in hospitals]


@pytest.mark.parametrize("target", ["latents", "mixture"])
def test_the_seed_is_every_sites_teacher_and_stays_while_the_encoder_learns(tmp_path: Path, target: str) -> None:
    home, places = federation(tmp_path / target, f"train.target={target}")
    seed, now = (load(home.checkpoint(number)).tensors for number in (0, 2))
    assert len([r for r in Ledger(home.ledger).rounds() if r.result != r.base]) == 2
    for place in places:
        (teacher,) = place.glob("teacher-*.safetensors")
        assert all(np.array_equal(values, seed[name].numpy()) for name, values in load_file(teacher).items())
        decoder = load_file(place / "decoder.safetensors")
        assert decoder["decoder_latent.weight"].any() and not encoder_of(cast(Any, decoder))
    # What predicts features stays at the sites: the common encoder has the names it had.
    assert set(now) == set(seed)
    pixels, _ = federation(tmp_path / "pixels")
    assert any(not np.array_equal(now[n], tensor) for n, tensor in load(pixels.checkpoint(2)).tensors.items())


def test_a_hospital_that_joins_late_or_lost_it_gets_the_campaigns_teacher(tmp_path: Path) -> None:
    home, places = federation(tmp_path, "train.target=latents", "keep=1")
    for file in places[0].glob("teacher-*.safetensors"):
        file.unlink()
    hospitals = populate(home, 3, 16, masked_autoencoder)  # the third was not there before
    loop_of(home, hospitals).run(4)
    seed = load(home.checkpoint(0)).tensors
    for hospital in hospitals:
        (teacher,) = hospital.place.glob("teacher-*.safetensors")
        assert all(np.array_equal(values, seed[name].numpy()) for name, values in load_file(teacher).items())
    ledger = Ledger(home.ledger)
    assert all(v.verdict == VerdictCode.ADMITTED for n in (3, 4) for v in ledger.verdicts(n).values())
    assert len(ledger.verdicts(3)) == 3


def test_a_campaigns_teacher_is_the_encoder_it_began_with_and_is_not_pruned(tmp_path: Path) -> None:
    home, _ = federation(tmp_path, "train.target=latents", "keep=1")
    ledger = Ledger(home.ledger)
    campaign.end(home, ledger)
    campaign.start(home, ledger, home.settings(), 3, None)
    began = load(home.checkpoint(2)).tensors
    hospitals = populate(home, 3, 16, masked_autoencoder)
    loop_of(home, hospitals).run(0)
    assert ledger.last_round().number == 5 and home.checkpoint(2).exists() and not home.checkpoint(3).exists()
    for hospital in hospitals:
        files = [load_file(path) for path in hospital.place.glob("teacher-*.safetensors")]
        assert any(all(np.array_equal(v, began[n].numpy()) for n, v in tensors.items()) for tensors in files)
