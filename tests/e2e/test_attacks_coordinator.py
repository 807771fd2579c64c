"""A coordinator that turned curious, against a real `usfmae-client run`: what it asks is refused, noted, and survived.

Its clinic is small, so that the floor is low; each bound is there. Every attack is followed by an honest round.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e import tables
from tests.e2e.federation import blobs
from tests.ports import free_port
from usfmae.client.rounds import campaigns
from usfmae.client.rounds.campaigns import CampaignState
from usfmae.core.config import AugmentSettings, ModelSettings, TrainRecipe
from usfmae.core.corpus.shard import PackedImage

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from curious import Change, CuriousCoordinator, Reply, Weights

pytestmark = [pytest.mark.e2e, pytest.mark.attacks]

MODEL = ModelSettings(
    image_size=32, patch_size=8, width=32, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
)
TRAIN = TrainRecipe(batch_size=4, micro_batch=4, steps=100, checkpoint_steps=100, precision="fp32", lr=1e-3)
QUIET = AugmentSettings(rotation=0, flips=False, zoom_min=1, zoom_max=1)
GREEDY = {"mask_ratio": 0.93, "batch_size": 1, "micro_batch": 1, "lr": 1e4, "clip": 1e-9, "augment": QUIET}
FLOOR: dict[str, Any] = {
    "new_campaigns": "auto",
    "min_batch": 4,
    "min_steps": 2,
    "min_images": 6,
    "min_patients": 4,
    "max_patient_share": 0.5,
    "min_visible_patches": 8,
    "probe": False,  # of an update on eight pictures a person is asked, and here there is none
    "campaigns_a_day": 1000,
}


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CuriousCoordinator]:
    pixels = blobs(1, 40)
    images = [PackedImage(image, f"{i:064d}", f"patient-{i // 2}") for i, image in enumerate(pixels)]
    with CuriousCoordinator(tmp_path_factory.mktemp("curious"), free_port(), images, FLOOR) as made:
        yield made


@pytest.fixture
def honest(coordinator: CuriousCoordinator) -> Iterator[Honest]:
    """The honest campaign beside an attack: its next round is answered after it as before, by the same process."""
    agent = coordinator.agent.pid
    yield Honest(coordinator)
    assert Honest(coordinator).round(), "an honest round is not answered any more"
    assert coordinator.agent.pid == agent and coordinator.agent.poll() is None


class Honest:
    """Rounds as the protocol means them."""

    done = 0

    def __init__(self, coordinator: CuriousCoordinator) -> None:
        self.coordinator = coordinator
        self.weights = coordinator.weights("honest", MODEL)

    def round(self) -> bool:
        Honest.done += 1
        reply = self.ask(self.weights, "honest", round=Honest.done, global_step=2 * Honest.done)
        return reply is not None and not reply.declined and bool(reply.changes)

    def ask(
        self,
        weights: Weights,
        campaign: str,
        model: ModelSettings = MODEL,
        train: TrainRecipe = TRAIN,
        seconds: float = 60,
        **fields: Any,
    ) -> Reply | None:
        request = self.coordinator.request(model, train, weights, campaign, **{"steps": 2, **fields})
        return self.coordinator.ask(request, weights, seconds)


def row(coordinator: CuriousCoordinator, attack: str, verdict: str, before: int) -> None:
    """A line of the table; the refusal must stand in the hospital's own log."""
    events = coordinator.audited()
    audited = sum(event in ("request.refused", "training.refused", "campaign.waiting") for event in events) > before
    tables.add("attacks", f"coordinator: {attack}", verdict[:60], "yes" if audited else "NO", "-")
    assert audited


def refusals(coordinator: CuriousCoordinator) -> int:
    return sum(e in ("request.refused", "training.refused", "campaign.waiting") for e in coordinator.audited())


RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    # train, model, request, what the refusal names
    "one step, one image, one visible patch": (GREEDY, {}, {"steps": 1}, "batch_size is 1, this site allows at least"),
    "one optimizer step": ({}, {}, {"steps": 1}, "steps is 1"),
    "one visible patch of each image": ({"mask_ratio": 0.93}, {}, {}, "visible share is 0.0625"),
    "the plain gradient by a tiny clip": ({"clip": 1e-9}, {}, {}, "clip is 1e-09"),
    "the plain gradient by inputs near zero": ({"std": (1e6,) * 3}, {}, {}, "std is"),
    "augmentation off": ({"augment": QUIET}, {}, {}, "augmentation is off"),
    "lossless update": ({}, {}, {"encoding": "fp32"}, "encoding is fp32"),
    "round 10^15": ({}, {}, {"round": 10**15}, "round is"),
    "10^9 steps": ({}, {}, {"steps": 10**9}, "steps is 1000000000"),
    "decoder 200,000 deep": ({}, {"decoder_depth": 200_000, "decoder_width": 128}, {}, "bytes of the model is"),
    "262,144 tokens": ({}, {"image_size": 1024, "patch_size": 2}, {}, "patches an image is 262144"),
    "lr 1e30, std 0": ({"lr": 1e30, "std": (1e-30, 1e-30, 1e-30)}, {}, {}, "lr is 1e+30"),
}


@pytest.mark.parametrize("attack", RECIPES)
def test_a_request_outside_the_floor_is_refused_before_a_download(
    coordinator: CuriousCoordinator, honest: Honest, attack: str
) -> None:
    train, model, fields, named = RECIPES[attack]
    before, downloads = refusals(coordinator), coordinator.downloaded()
    name = "".join(letter for letter in attack if letter.isalnum())
    changed = TRAIN.model_copy(update=train)
    reply = honest.ask(honest.weights, name, MODEL.model_copy(update=model), changed, **fields)
    assert reply is not None and reply.declined.startswith("refused") and named in reply.declined
    assert coordinator.downloaded() == downloads
    row(coordinator, attack, "refused", before)


def test_a_recipe_nested_deep(coordinator: CuriousCoordinator, honest: Honest) -> None:
    before = refusals(coordinator)
    reply = honest.ask(honest.weights, "nested", recipe='{"model":' + "[" * 60_000)
    assert reply is not None and reply.declined.startswith("refused: recipe")
    row(coordinator, "recipe nested 60,000 deep", "refused", before)


def imprint(noise: float) -> Change:
    def craft(tensors: dict[str, torch.Tensor]) -> None:
        random = torch.Generator().manual_seed(1)
        weight = tensors["blocks.0.mlp.fc1.weight"]
        rows = torch.randn(weight.shape[1], generator=random).expand_as(weight)
        weight.copy_(0.2 * (rows + noise * torch.randn(weight.shape, generator=random)))
        tensors["blocks.0.mlp.fc1.bias"].copy_(torch.linspace(-1, 1, len(weight)))

    return craft


def dead_branch(tensors: dict[str, torch.Tensor]) -> None:
    tensors["blocks.0.attn.proj.weight"] *= 1e-6


def exploding_bias(tensors: dict[str, torch.Tensor]) -> None:
    tensors["blocks.0.mlp.fc1.bias"][:40] = -9e3


CRAFTED: dict[str, Change] = {
    "imprint rows under 1 % of noise": imprint(0.01),
    "imprint rows under 3 % of noise": imprint(0.03),
    "imprint rows under 30 % of noise": imprint(0.3),
    "a block that hands its input on": dead_branch,
    "biases that explode": exploding_bias,
}


@pytest.mark.parametrize("attack", CRAFTED)
def test_crafted_weights_are_refused_although_the_request_keeps_every_bound(
    coordinator: CuriousCoordinator, honest: Honest, attack: str
) -> None:
    before = refusals(coordinator)
    name = "".join(letter for letter in attack if letter.isalnum())
    reply = honest.ask(coordinator.weights(name, MODEL, CRAFTED[attack]), name)
    assert reply is not None and reply.declined.startswith("refused") and not reply.changes
    row(coordinator, attack, "refused", before)


def test_a_new_campaigns_name_does_not_reset_the_comparison(coordinator: CuriousCoordinator, honest: Honest) -> None:
    assert honest.round()
    before = refusals(coordinator)

    def longer(tensors: dict[str, torch.Tensor]) -> None:
        tensors["blocks.0.attn.qkv.weight"] *= 5

    reply = honest.ask(coordinator.weights("longer", MODEL, longer), "longer", steps=3)
    assert reply is not None and "norm went from" in reply.declined
    row(coordinator, "a tensor five times as long, new campaign name", "refused", before)


def test_another_model_under_a_new_campaigns_name_waits_for_a_person(
    coordinator: CuriousCoordinator, honest: Honest
) -> None:
    assert honest.round()
    before = refusals(coordinator)
    other = MODEL.model_copy(update={"width": 48})
    reply = honest.ask(coordinator.weights("other", other), "other", other, seconds=5, steps=3)
    known = campaigns.agreement(coordinator.site, "other")
    assert reply is None and known is not None and known.state is CampaignState.WAITING
    row(coordinator, "other shapes, new campaign name", "waits for a person", before)


def test_an_earlier_round_with_another_encoder(coordinator: CuriousCoordinator, honest: Honest) -> None:
    assert honest.round() and honest.round()
    before = refusals(coordinator)
    other = coordinator.weights("earlier", MODEL, seed=4)
    reply = honest.ask(other, "honest", round=Honest.done - 1, global_step=2 * Honest.done)
    assert reply is not None and "has taken up round" in reply.declined
    row(coordinator, "a round older than what was done", "refused", before)


@pytest.mark.parametrize("field", ["encoding", "min_new", "with_replay", "delta_from", "deadline", "expires"])
def test_a_field_changed_under_the_signature(coordinator: CuriousCoordinator, honest: Honest, field: str) -> None:
    before = refusals(coordinator)
    request = coordinator.request(MODEL, TRAIN, honest.weights, "changed", steps=2)
    values = {"encoding": "bf16", "min_new": 1, "with_replay": True, "delta_from": "0" * 64}
    changed = dataclasses.replace(request, **{field: values.get(field, 4e9)})
    reply = coordinator.ask(changed, honest.weights)
    assert reply is not None and reply.declined.startswith("refused: signature")
    row(coordinator, f"{field} changed under the signature", "refused", before)


def test_damaged_state_costs_its_request_and_not_the_agent(coordinator: CuriousCoordinator) -> None:
    """Rows of the disk: an empty base of the round before, a pending file without its keys."""
    honest = Honest(coordinator)
    assert honest.round()
    coordinator.stop_agent()
    for base in (coordinator.site.root / "jobs").glob("*/base.safetensors"):
        base.write_bytes(b"")
    pending = coordinator.site.root / "pending"
    pending.mkdir(exist_ok=True)
    (pending / "1-abc.json").write_text("{}")
    coordinator.start_agent()
    assert honest.round()
    assert "request.damaged" in coordinator.audited()
    tables.add("attacks", "disk: base of the round before empty, pending file empty", "goes on", "yes", "-")


def test_what_an_honest_update_drew_on_stands_on_its_sheet(coordinator: CuriousCoordinator) -> None:
    assert Honest(coordinator).round()
    sheets = sorted((coordinator.site.root / "outbox").glob("*/sheet.txt"), key=lambda path: path.stat().st_mtime)
    text = sheets[-1].read_text()
    assert "patients, largest share of one patient" in text and "floor kept (6 images, 4 patients, 50%)" in text
