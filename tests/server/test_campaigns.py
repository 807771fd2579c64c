"""Campaigns begin, go on unchanged, end, and can be read from the ledger."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.server.virtual import home_with, honest, loop_of
from usfmae.core.checkpoint import load, save
from usfmae.core.errors import ConfigError, PolicyError
from usfmae.core.federated.local_round import Trained
from usfmae.server import campaign
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger
from usfmae.server.simulate import populate


def test_a_campaign_changed_while_it_runs_asks_for_a_new_one(tmp_path: Path) -> None:
    home = home_with(tmp_path, None)
    hospitals = populate(home, 1, 8, honest)
    loop_of(home, hospitals).run(1)
    changed = home.settings(["train.lr=0.5"])
    with pytest.raises(PolicyError, match=r"train\.lr.*changed while the campaign runs.*campaign start"):
        loop_of(home, hospitals, changed).run(2)
    loop_of(home, hospitals, home.settings(["train.micro_batch=1"])).run(2)  # changes nothing that is computed


def test_a_new_campaign_warms_up_again_and_may_start_from_an_earlier_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = home_with(tmp_path, None)
    seen: list[tuple[int, int, int, str]] = []

    def watching(place: Path, request: Any, encoder: dict[str, Any], decoder: Path) -> Trained:
        train = json.loads(request.recipe)["train"]
        seen.append((request.global_step, train["origin"], train["steps"], request.base))
        return honest(place, request, encoder, decoder)

    hospitals = populate(home, 1, 8, watching)
    loop_of(home, hospitals).run(2)
    ledger = Ledger(home.ledger)
    with pytest.raises(PolicyError, match="is running"):
        campaign.start(home, ledger, home.settings(), 2, None)
    campaign.end(home, ledger)
    with pytest.raises(PolicyError, match="was ended"):
        loop_of(home, hospitals).run(0)
    with monkeypatch.context() as patched:  # an encoder may be larger than this machine's memory
        patched.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} is read whole"))
        begun = campaign.start(home, ledger, home.settings(["train.lr=1e-4"]), 2, 1)
    loop_of(home, hospitals, home.settings(["train.lr=1e-4"])).run(0)  # ends by itself after its two rounds
    rounds = ledger.rounds()
    assert [r.number for r in rounds] == [1, 2, 3, 4, 5] and begun.first == 4
    assert rounds[2].result == rounds[0].result == seen[2][3] and rounds[2].summary["back_to"] == 1
    assert seen[2][:3] == (8, 8, 16) and seen[3][:3] == (12, 8, 16)
    assert all(a.result == b.base for a, b in itertools.pairwise(rounds))


def test_campaigns_end_and_begin_from_the_command_line(tmp_path: Path) -> None:
    from usfmae.server.cli.rounds import campaign as command

    home = home_with(tmp_path, None)
    loop_of(home, populate(home, 1, 8, honest)).run(1)
    run = CliRunner().invoke
    assert isinstance(run(command, ["start", str(home.root)]).exception, PolicyError)  # one runs
    assert "has ended" in run(command, ["end", str(home.root)]).output
    assert isinstance(run(command, ["end", str(home.root)]).exception, PolicyError)
    assert "begins with round 2" in run(command, ["start", str(home.root), "--rounds", "3"]).output
    listed = json.loads(run(command, ["list", str(home.root), "--json"]).output)
    assert [(one["first"], one["rounds"], one["ended"] is None) for one in listed] == [(1, 0, False), (2, 3, True)]


@pytest.mark.parametrize(
    ("changed", "rounds"),
    [
        (["train.lr=0"], 2),
        (["rounds.total_steps=4"], 3),  # a planned campaign that is longer than its schedule
        (["train.schedule=infinite", "train.constant=0", "train.warmup=0"], 10),
    ],
)
def test_a_campaign_in_which_a_round_would_learn_nothing_is_refused_at_its_start(
    tmp_path: Path, changed: list[str], rounds: int
) -> None:
    home = home_with(tmp_path, None)
    ledger = Ledger(home.ledger)
    loop_of(home, populate(home, 1, 8, honest)).run(1)
    campaign.end(home, ledger)
    with pytest.raises(PolicyError, match=r"rate is 0 .*nothing would be learned"):
        campaign.start(home, ledger, home.settings(changed), rounds, None)
    campaign.start(home, ledger, home.settings(), rounds, None)


def test_a_preset_that_a_person_names_at_init_brings_its_values_and_explicit_keys_win(tmp_path: Path) -> None:
    train = home_with(tmp_path, None, "train.preset=best", "train.lr=5e-4", "train.augment.rotation=7").settings().train
    assert (train.mask_ratio, train.norm_pix, train.optimizer, train.lr) == (0.75, True, "muon", 5e-4)
    # The same beside a seed, whose recipe lies beneath both.
    seed = Layout(tmp_path / "home")
    path = tmp_path / "seed.safetensors"
    encoder = load(seed.checkpoint(0))
    save(path, {**encoder.tensors, **load(seed.decoder).tensors}, encoder.metadata)
    again = home_with(tmp_path / "again", None, "train.augment.zoom_min=0.9", "train.optimizer=adamw", seed=path)
    train = again.settings().train
    assert (train.augment.rotation, train.augment.zoom_min, train.optimizer, train.mask_ratio) == (
        7,
        0.9,
        "adamw",
        0.75,
    )


@pytest.mark.parametrize(
    "wanted",
    [
        ["train.mask_ratio=0.999"],
        ["model.image_size=16", "model.patch_size=16"],
        ["train.betas=[1,1]"],
        ["train.std=[0,1,1]"],
    ],
)
def test_settings_that_no_training_can_have_are_refused_at_init(tmp_path: Path, wanted: list[str]) -> None:
    with pytest.raises(ConfigError):
        home_with(tmp_path, None, *wanted)
