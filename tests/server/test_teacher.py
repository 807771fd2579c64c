"""A federation whose sites predict the features of the seed, which each of them holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.server.virtual import home_with, loop_of
from usfmae.client.rounds.trainer import TrainingJob
from usfmae.core.checkpoint import encoder_of, load
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


def test_a_sites_worker_freezes_the_encoder_of_its_first_round(tmp_path: Path) -> None:
    job = SimpleNamespace(
        settings=SimpleNamespace(target="latents"),
        site=SimpleNamespace(root=tmp_path),
        request=SimpleNamespace(campaign="c1"),
    )
    first, later = {"a": np.ones(3, np.float32)}, {"a": np.zeros(3, np.float32)}
    frozen = [TrainingJob.teacher(cast(Any, job), base) for base in (first, later)]
    assert all(f is not None and f["a"].tolist() == [1, 1, 1] for f in frozen)
    job.request.campaign = "c2"
    again = TrainingJob.teacher(cast(Any, job), later)
    assert again is not None and again["a"].tolist() == [0, 0, 0]
    job.settings.target = "pixels"
    assert TrainingJob.teacher(cast(Any, job), later) is None
