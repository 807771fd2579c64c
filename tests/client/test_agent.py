"""What a site does with requests, in process: the wire is Flower's format, the training is real and tiny."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
import torch

from usfmae.client.agent import Agent
from usfmae.client.flower.request_queue import PendingRequest
from usfmae.client.rounds import jobs
from usfmae.client.site import Site
from usfmae.core import keys
from usfmae.core.checkpoint import encoder_of
from usfmae.core.federated import codec, messages
from usfmae.core.mae.model import fresh

from .at_work import events, replies, turns
from .conftest import MODEL, Aggregator


def test_a_round_is_trained_signed_and_sent_and_the_delta_is_what_training_did(
    agent: Agent, aggregator: Aggregator, site: Site
) -> None:
    request = aggregator.ask()
    turns(agent)
    (reply,) = replies(aggregator)
    messages.verify(reply, site.signing_key.public_key())
    assert (reply.campaign, reply.round, reply.base, reply.declined) == ("demo", 1, request.base, "")
    assert reply.images > 0 and reply.steps == 3 and reply.loss_before > 0 < reply.loss_after
    arrays = aggregator.replies()[0].content[messages.UPDATE]  # type: ignore[attr-defined]
    payload = {name: array.data for name, array in arrays.items()}
    assert codec.payload_id(payload) == reply.content
    base = encoder_of(fresh(MODEL, seed=0).state_dict())
    assert set(payload) == set(base)
    moved = sum(float(np.abs(codec.unpack(payload[n], base[n].numpy(), "int8")).sum()) for n in base)
    assert moved > 0
    assert {"request.refused", "request.declined"}.isdisjoint(events(site))


def test_a_repeated_request_is_answered_from_disk_without_download_or_training(
    agent: Agent, aggregator: Aggregator
) -> None:
    aggregator.ask()
    turns(agent)
    aggregator.restart()
    pulled = aggregator.calls.count("pull-object")
    aggregator.ask()
    turns(agent)
    first, second = replies(aggregator)
    assert first.content == second.content
    assert len(agent.workers.trained) == 1  # type: ignore[attr-defined]
    assert aggregator.calls.count("pull-object") - pulled <= 3  # message, names, record: not the model


def test_training_that_outlives_its_request_answers_the_next_one(agent: Agent, aggregator: Aggregator) -> None:
    aggregator.ask()
    agent._see_to_requests()  # downloaded, not yet trained
    aggregator.restart()
    agent.connection.online = False
    turns(agent)
    aggregator.ask()
    turns(agent)
    assert len(replies(aggregator)) == 1
    assert len(agent.workers.trained) == 1  # type: ignore[attr-defined]


def test_an_upload_cut_off_goes_on_with_the_missing_pieces(agent: Agent, aggregator: Aggregator) -> None:
    aggregator.ask()
    failing = {"left": 6}

    def cut(name: str) -> None:
        if name == "push-object" and failing["left"] > 0:
            failing["left"] -= 1
            if failing["left"] == 0:
                raise httpx.WriteError("connection lost")

    aggregator.before = cut
    turns(agent, 6)
    assert len(replies(aggregator)) == 1
    (_, _, order), *more = aggregator.uploads.values()
    assert not more, "one reply under one id"
    assert aggregator.calls.count("push-object") == len(set(order)) + 1


def test_a_download_cut_off_goes_on_after_the_last_whole_tensor(agent: Agent, aggregator: Aggregator) -> None:
    aggregator.ask()
    seen = {"count": 0}

    def cut(name: str) -> None:
        if name == "pull-object":
            seen["count"] += 1
            if seen["count"] > 60 and not seen.get("healed"):
                raise httpx.ReadError("connection lost")

    aggregator.before = cut
    turns(agent, 1)
    assert agent.state == "offline"
    seen["healed"] = 1
    wanted = len(aggregator.objects)
    before = seen["count"]
    turns(agent)
    assert len(replies(aggregator)) == 1
    assert seen["count"] - before < wanted, "tensors already on disk are not fetched again"


def test_two_rounds_keep_decoder_optimizer_and_residue_on_site(
    agent: Agent, aggregator: Aggregator, site: Site
) -> None:
    aggregator.ask(1)
    turns(agent)
    first = jobs.finished(site, "demo")[0][1]
    aggregator.ask(2, seed=0, with_decoder=False, step=3)
    turns(agent)
    works = jobs.finished(site, "demo")
    assert [number for number, _ in works] == [1, 2]
    assert works[1][1].trained_decoder.read_bytes() != first.trained_decoder.read_bytes()
    assert sorted(p.name for p in (site.root / "campaigns/demo/state").glob("*optimizer*"))[-1].startswith(
        "step-000000006"
    )
    assert len(replies(aggregator)) == 2


def test_a_later_round_takes_the_place_of_one_that_was_never_finished(
    agent: Agent, aggregator: Aggregator, site: Site
) -> None:
    aggregator.ask(1)
    agent._see_to_requests()
    aggregator.ask(2, seed=1)
    turns(agent)
    assert [r.round for r in replies(aggregator)] == [2]
    assert len(agent.workers.trained) == 1 and agent.workers.trained[0].startswith("r00002")  # type: ignore[attr-defined]
    assert {"request.superseded", "training.given-up"} <= set(events(site))
    assert not PendingRequest.all(site)


def test_without_a_decoder_the_site_asks_for_one(agent: Agent, aggregator: Aggregator) -> None:
    aggregator.ask(3, with_decoder=False)
    turns(agent)
    assert [r.declined for r in replies(aggregator)] == ["need-decoder"]


def test_a_request_the_coordinator_did_not_sign_is_refused_and_audited(
    agent: Agent, aggregator: Aggregator, site: Site
) -> None:
    aggregator.ask(signer=keys.new_signing_key())
    turns(agent)
    assert replies(aggregator)[0].declined.startswith("refused: signature")
    assert "request.refused" in events(site)
    assert agent.workers.trained == []  # type: ignore[attr-defined]


def test_the_first_request_of_a_newer_aggregator_is_no_failure_and_a_second_is(
    agent: Agent, aggregator: Aggregator, site: Site
) -> None:
    """The first answer tells it to ask in this version; where it asks in the newer one again, somebody has to know."""
    aggregator.ask(version=messages.VERSION + 1)
    turns(agent)
    assert replies(aggregator)[0].declined.startswith("refused: protocol version 4")
    assert replies(aggregator)[0].version == messages.VERSION
    assert "request.version" in events(site) and "request.refused" not in events(site)
    aggregator.ask(version=messages.VERSION + 1)
    turns(agent)
    assert "request.refused" in events(site)


def test_a_site_that_speaks_a_later_version_too_answers_an_older_aggregator_in_its_own(
    agent: Agent, aggregator: Aggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fields of the later version are not among what is staged, signed and sent."""
    monkeypatch.setattr(messages, "SPOKEN", (4, 3))
    monkeypatch.setattr(messages, "SINCE", {"custodian": 4, "mask": 4, "task": 4})
    aggregator.ask(version=3)
    turns(agent)
    (reply,) = replies(aggregator)
    assert (reply.version, reply.declined, reply.steps) == (3, "", 3)


def test_an_encoder_that_is_not_the_signed_one_is_refused(agent: Agent, aggregator: Aggregator, site: Site) -> None:
    aggregator.ask(base="0" * 64)
    turns(agent)
    assert "not the one the coordinator signed" in replies(aggregator)[0].declined
    assert not list((site.root / "jobs").glob("*/base.safetensors"))


@pytest.mark.parametrize("attack", ["nan", "copies", "dead", "huge"])
def test_weights_made_to_give_away_images_are_refused(agent: Agent, aggregator: Aggregator, attack: str) -> None:
    encoder = {k: v.clone() for k, v in encoder_of(fresh(MODEL, seed=0).state_dict()).items()}
    weight = encoder["blocks.0.mlp.fc1.weight"]
    if attack == "nan":
        weight[0, 0] = float("nan")
    elif attack == "copies":
        weight[:] = torch.arange(1, len(weight) + 1)[:, None] * weight[0]
    elif attack == "dead":
        weight[: len(weight) // 2] = 0
    else:
        weight[3, 3] = 1e6
    aggregator.ask(encoder=encoder)
    turns(agent)
    assert "incoming tensor 'blocks.0.mlp.fc1.weight'" in replies(aggregator)[0].declined


def test_an_encoder_far_from_its_parent_is_refused(agent: Agent, aggregator: Aggregator) -> None:
    aggregator.ask(1)
    turns(agent)
    encoder = encoder_of(fresh(MODEL, seed=0).state_dict())
    jumped = {k: v * 50 if k == "blocks.0.attn.qkv.weight" else v for k, v in encoder.items()}
    aggregator.ask(2, encoder=jumped, step=3)
    turns(agent)
    assert "norm went from" in replies(aggregator)[1].declined
