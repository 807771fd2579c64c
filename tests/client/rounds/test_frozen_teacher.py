"""A campaign's frozen teacher at a site: the encoder the campaign began with, or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from usfmae.client.rounds import frozen_teacher
from usfmae.client.rounds.apply_step import LostError
from usfmae.client.site import Site
from usfmae.core.config import TrainRecipe
from usfmae.core.errors import PolicyError
from usfmae.core.federated.messages import DeclineReason, TrainRequest

SEED, LATER = {"a": np.ones(3, np.float32)}, {"a": np.zeros(3, np.float32)}
RECIPE = TrainRecipe(target="latents", teacher="5eed" * 16)
FIRST = TrainRequest(campaign="c1", round=1, base=RECIPE.teacher, global_step=0, steps=3, recipe="")
SECOND = replace(FIRST, round=2, base="1a7e" * 16)


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


def test_the_base_of_the_first_round_is_frozen_and_stays(site: Site) -> None:
    assert frozen_teacher.lacking(site, FIRST, RECIPE) == ""
    for request, base in ((FIRST, SEED), (SECOND, LATER)):
        teacher = frozen_teacher.load(site, request, RECIPE, base, is_first=True)
        assert teacher is not None and teacher["a"].tolist() == [1, 1, 1]
    assert frozen_teacher.lacking(site, SECOND, RECIPE) == ""


def test_a_site_that_joins_late_asks_for_the_teacher_and_freezes_nothing_else(site: Site, tmp_path: Path) -> None:
    assert frozen_teacher.lacking(site, SECOND, RECIPE) == DeclineReason.NEED_TEACHER
    with pytest.raises(LostError) as lost:
        frozen_teacher.load(site, SECOND, RECIPE, LATER, is_first=True)
    assert lost.value.needed == DeclineReason.NEED_TEACHER
    save_file(SEED, tmp_path / "received.safetensors")
    frozen_teacher.settle(site, SECOND, RECIPE, tmp_path / "received.safetensors")
    teacher = frozen_teacher.load(site, SECOND, RECIPE, LATER, is_first=True)
    assert teacher is not None and teacher["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("damage", ["flipped", "cut", "unsealed"])
def test_a_damaged_teacher_is_asked_for_and_never_replaced_by_another_encoder(site: Site, damage: str) -> None:
    frozen_teacher.load(site, FIRST, RECIPE, SEED, is_first=True)
    path = frozen_teacher.place(site, FIRST, RECIPE)
    whole = path.read_bytes()
    if damage == "unsealed":
        path.with_suffix(".crc32").unlink()
    else:
        path.write_bytes(whole[:-1] if damage == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    assert frozen_teacher.lacking(site, SECOND, RECIPE) == DeclineReason.NEED_TEACHER
    with pytest.raises(LostError):
        frozen_teacher.load(site, SECOND, RECIPE, LATER, is_first=True)
    assert not path.exists()


def test_another_campaign_has_its_own(site: Site) -> None:
    frozen_teacher.load(site, FIRST, RECIPE, SEED, is_first=True)
    assert frozen_teacher.lacking(site, replace(SECOND, campaign="c2"), RECIPE) == DeclineReason.NEED_TEACHER


def test_pixels_need_no_teacher_and_features_need_a_named_one(site: Site) -> None:
    assert frozen_teacher.load(site, SECOND, TrainRecipe(), LATER, is_first=True) is None
    assert frozen_teacher.lacking(site, SECOND, TrainRecipe()) == ""
    with pytest.raises(PolicyError, match="names no teacher"):
        frozen_teacher.lacking(site, SECOND, TrainRecipe(target="mixture"))
