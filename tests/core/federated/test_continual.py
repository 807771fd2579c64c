"""The pure parts: schedule, mixing, averaging, panel measures, budget."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from usfmae.core.config import ModelSettings, TrainRecipe
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.federated import forgetting, forgetting_panel, replay
from usfmae.core.federated.forgetting import Budget
from usfmae.core.federated.forgetting_panel import Reading
from usfmae.core.mae.lr_schedule import learning_rate
from usfmae.core.mae.model import fresh
from usfmae.core.mae.train import TrainPlan, train


def rates(settings: TrainRecipe, start: int, end: int) -> list[float]:
    return [learning_rate(step, end, settings) for step in range(start, end + 1)]


def test_the_infinite_schedule_warms_up_cools_down_stays_and_anneals_to_the_floor() -> None:
    shape = {"warmup": 0.1, "cooldown": 0.2, "constant": 0.5, "anneal": 0.2}
    found = rates(TrainRecipe(schedule="infinite", lr=1.0, min_lr=0.1, **shape), 0, 100)
    assert found[0] == 0 and found[5] == pytest.approx(0.5)
    assert found[10] == 1.0 and found[20] == pytest.approx(0.1 + 0.9 * 0.75)  # half of the way down to a half
    assert found[30:81] == [pytest.approx(0.55)] * 51
    assert found[90] == pytest.approx(0.1 + 0.45 / 2) and found[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(found[10:]))


def test_a_campaign_warms_up_again_from_its_origin() -> None:
    first = TrainRecipe(schedule="infinite", lr=1.0)
    again = first.model_copy(update={"origin": 1000})
    assert rates(again, 1000, 1100) == rates(first, 0, 100)


def test_cosine_is_the_one_of_a_single_run() -> None:
    found = rates(TrainRecipe(lr=1.0, warmup=0.0), 0, 100)
    assert found[0] == 1 and found[50] == pytest.approx(0.5) and found[100] == pytest.approx(0)
    assert found[25] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_replay_is_the_stated_share_and_moves_on_through_the_public_images(share: float) -> None:
    own, public = np.arange(300), np.arange(1000, 1040)
    mixed = replay.with_replay(own, public, share, 3, 42)
    assert set(own) <= set(mixed) and (mixed >= 1000).mean() == pytest.approx(share, abs=0.003)
    assert (mixed == replay.with_replay(own, public, share, 3, 42)).all()
    seen = set(np.concatenate([replay.with_replay(own, public, share, turn, 42) for turn in range(4)]))
    assert set(public) <= seen


def test_no_replay_leaves_the_list_as_it_is() -> None:
    own = np.arange(10)
    assert replay.with_replay(own, np.arange(5), 0.0, 0, 1) is own
    assert replay.with_replay(own, np.arange(0), 0.5, 0, 1) is own


def test_new_images_make_up_their_share_but_are_not_repeated_for_ever() -> None:
    positions, uses = np.arange(100), np.r_[np.zeros(20, int), np.ones(80, int)]
    mixed = replay.with_new(positions, uses, 0.5, repeats=10)
    assert (mixed < 20).mean() == pytest.approx(0.5) and set(mixed) == set(positions)
    few = replay.with_new(positions, np.r_[0, np.ones(99, int)], 0.5, repeats=4)
    assert (few == 0).sum() == 4
    assert (replay.with_new(positions, np.zeros(100, int), 0.5, 4) == positions).all()


def test_interpolation_is_exact_at_both_ends() -> None:
    old, new = {"w": torch.arange(7.0)}, {"w": torch.linspace(3, -2, 7)}
    assert torch.equal(forgetting.interpolate(old, new, 0)["w"], old["w"])
    assert torch.equal(forgetting.interpolate(old, new, 1)["w"], new["w"])
    assert torch.allclose(forgetting.interpolate(old, new, 0.25)["w"], 0.75 * old["w"] + 0.25 * new["w"])
    assert torch.equal(forgetting.anchored(old, new, 3, 2, 0.5)["w"], new["w"])
    assert not torch.equal(forgetting.anchored(old, new, 4, 2, 0.5)["w"], new["w"])
    assert torch.equal(forgetting.pulled(old, new, 0)["w"], new["w"])


def test_probes_find_separable_classes_and_chance_where_there_is_nothing() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [180, 90, 30])
    nothing = random.normal(size=(300, 8))
    apart = nothing + 6 * np.eye(8)[labels]
    order = random.permutation(300)
    fit, test = order[:200], order[200:]
    for probe in (forgetting_panel.knn, forgetting_panel.linear_probe):
        assert probe(apart[fit], labels[fit], apart[test], labels[test]) > 0.95
        assert probe(nothing[fit], labels[fit], nothing[test], labels[test]) < 0.6


def test_cka_ignores_rotation_and_scale_and_sees_other_features() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 6))
    turn = np.linalg.qr(random.normal(size=(6, 6)))[0]
    assert forgetting_panel.cka(x, 3 * x @ turn) == pytest.approx(1)
    assert forgetting_panel.cka(x, random.normal(size=(200, 6))) < 0.2


def test_backward_transfer_counts_old_organs_only() -> None:
    seed = {"old": forgetting_panel.Reading(1.0), "new": forgetting_panel.Reading(2.0)}
    now = {"old": forgetting_panel.Reading(1.2), "new": forgetting_panel.Reading(1.0)}
    assert forgetting_panel.backward_transfer(seed, now, ["old"]) == pytest.approx(0.2)


def readings(**losses: float) -> dict[str, Reading]:
    return {organ: Reading(loss) for organ, loss in losses.items()}


SEED, BUDGET = readings(breast=1.0, lung=2.0), Budget(0.1, 0.15)


@pytest.mark.parametrize(
    ("now", "at_half", "outcome", "share"),
    [
        (readings(breast=1.09, lung=1.0), {}, "accepted", 1.0),
        (readings(breast=1.5, lung=1.0), readings(breast=1.09, lung=1.5), "interpolated", 0.5),
        (readings(breast=1.5, lung=1.0), readings(breast=1.4, lung=1.5), "refused", 0.0),
        (readings(breast=math.nan, lung=1.0), readings(breast=math.inf, lung=1.5), "refused", 0.0),
    ],
)
def test_the_budget_accepts_moves_back_or_refuses(
    now: dict[str, Reading], at_half: dict[str, Reading], outcome: str, share: float
) -> None:
    decision = forgetting.decide(SEED, SEED, now, BUDGET, [(0.5, at_half)])
    assert (decision.outcome, decision.share) == (outcome, share)
    assert ("breast" in decision.reason and "+10%" in decision.reason) == (outcome != "accepted")


def test_an_organ_that_was_over_a_lowered_budget_must_only_not_get_worse() -> None:
    before = readings(breast=1.3, lung=2.0)
    assert not forgetting.over(SEED, before, readings(breast=1.25, lung=2.0), BUDGET)
    assert forgetting.over(SEED, before, readings(breast=1.31, lung=2.0), BUDGET) == ["breast"]


@pytest.mark.parametrize(("knn", "probe", "outcome"), [(0.5, 0.9, "accepted"), (0.6, 0.7, "refused")])
def test_an_organ_whose_probes_fall_together_breaks_the_budget_though_its_loss_does_not(
    knn: float, probe: float, outcome: str
) -> None:
    """One coarse probe that falls by 30 points is no proof; the mean of both by 20 is."""
    seed, now = {"lung": Reading(1.0, knn=0.8, probe=0.9)}, {"lung": Reading(0.9, knn=knn, probe=probe)}
    decision = forgetting.decide(seed, seed, now, Budget(0.1, 0.19))
    assert decision.outcome == outcome and ("points" in decision.reason) == (outcome == "refused")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("corpus")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16), dtype=np.uint8)
    write_shard(root, "all", [PackedImage(image, f"image-{k}", f"group-{k}") for k, image in enumerate(pixels)])
    return Corpus([root])


def test_fedprox_keeps_the_encoder_near_where_the_round_began(corpus: Corpus, tmp_path: Path) -> None:
    tiny = ModelSettings(
        image_size=16, patch_size=8, width=8, depth=1, heads=1, decoder_width=8, decoder_depth=1, decoder_heads=1
    )

    def moved(proximal: float) -> tuple[float, float]:
        model, start = fresh(tiny), fresh(tiny).state_dict()
        settings = TrainRecipe(proximal=proximal, lr=1e-2, warmup=0, batch_size=4, precision="fp32", clip=1e9)
        train(model, corpus, settings, TrainPlan(np.arange(12), 8))
        now = model.state_dict()
        return tuple(  # type: ignore[return-value]
            float(sum((now[n] - start[n]).square().sum() for n in now if n.startswith("decoder_") == decoder))
            for decoder in (False, True)
        )

    free, held = moved(0.0), moved(100.0)
    assert held[0] < 0.5 * free[0]
    assert held[1] > 0.2 * free[1]  # the decoder is not held
