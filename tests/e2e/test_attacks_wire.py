"""Attacks that need more than one message: replays, floods, bombs, somebody else's place."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.proto import message_pb2 as wire
from safetensors.numpy import load_file

from tests.e2e.arena import Draft, Hospital, Stage, request_of, row
from usfmae.client.flower import fleet_client, messages, transport_errors
from usfmae.core import flower_objects
from usfmae.core.federated import messages as protocol
from usfmae.core.federated.messages import RAW, TrainRequest, VerdictCode

pytestmark = pytest.mark.attacks

SOON = ("rounds.deadline=20",)  # seconds: for who sends rubbish once, and then nothing


def test_a_replayed_round_is_refused(tmp_path):
    """Mallory is honest in round 1 and sends the same signed reply, then the same update newly signed, again."""
    with Stage(tmp_path, hostile=1, rounds=3) as stage:
        kept: list[Draft] = []

        def replay(draft: Draft) -> None:
            if draft.asked.round == 2:  # the old reply, word for word
                old = kept[0]
                draft.payload = old.payload
                draft.fields.update(round=1, base=old.asked.base)
            elif draft.asked.round == 3:  # the old update under a new signature
                draft.payload = kept[0].payload
            kept.append(draft)

        stage.mallory.attack = replay
        stage.hostile()
        stage.done()
        verdicts = [stage.verdict(n) for n in (1, 2, 3)]
        audited = [stage.audited(actor="gate", round=n, verdict=verdicts[n - 1], status="refused") for n in (2, 3)]
        row("replayed round (word for word)", verdicts[1], audited[0])
        row("replayed update, signed anew", verdicts[2], audited[1])
        assert (verdicts, audited) == ([VerdictCode.ADMITTED, "wrong-round", "replayed"], [True, True])


def test_a_message_of_10_gb_is_stopped_at_the_size_of_an_update(tmp_path, honest_alone):
    with Stage(tmp_path, 1, 1, *SOON) as stage:

        def enormous(draft: Draft) -> None:
            draft.payload["flood"] = b"\0"

        def flood(draft: Draft, name: str) -> flower_objects.Part:
            if name != "flood":
                return Hospital._part(stage.mallory, draft, name)
            blocks = [np.random.default_rng(i).bytes(2**20) for i in range(5)]
            size = 5 * 2**20 * 3  # as many chunks as it likes: the limit is passed with the first
            return flower_objects.Part(
                "int8", (size,), RAW, size, lambda a, b: (blocks[a // flower_objects.CHUNK] * 5)[: b - a]
            )

        stage.mallory.attack, stage.mallory._part = enormous, flood
        fleet = stage.mallory.connect(stage.home, stage.port)
        request = request_of(fleet)
        with pytest.raises(fleet_client.UnreachableError):
            stage.mallory.answer(fleet, request)
        result = stage.done()
        spent = sum(f.stat().st_size for f in stage.home.transit.glob("*"))
        got, audited = stage.verdict(), stage.audited(actor="gate", verdict="bad-message")
        row("10 GB message, piece by piece", got, audited, result == honest_alone)
        assert (got, audited, result) == ("bad-message", True, honest_alone)
        assert spent < 8 * 2**20


def test_a_chunk_that_is_named_1000_times_is_not_unfolded(tmp_path, honest_alone, monkeypatch):
    with Stage(tmp_path, 1, 1, *SOON) as stage:
        fleet = stage.mallory.connect(stage.home, stage.port)
        request = request_of(fleet)
        base = load_file(stage.home.checkpoint(0))
        draft = Draft(asked(fleet, request), base, dict.fromkeys(base, b"x"), {}, {})
        real = flower_objects.json.dumps

        def folded(about: object, **options: Any) -> str:
            if isinstance(about, dict) and "arraychunk_ids" in about:
                about = {**about, "arraychunk_ids": [0] * 1000}
            return real(about, **options)

        stage.mallory._part = lambda draft, name: flower_objects.Part(
            "int8", base[name].shape, RAW, 2**14, lambda a, b: bytes(b - a)
        )
        with monkeypatch.context() as patch:
            patch.setattr(flower_objects.json, "dumps", folded)
            stage.mallory.push(fleet, request, draft)
        result = stage.done()
        got, audited = stage.verdict(), stage.audited(actor="gate", verdict="wrong-size")
        row("16 KiB that unfold to 16 MB a tensor", got, audited, result == honest_alone)
        assert (got, audited, result) == ("wrong-size", True, honest_alone)


def asked(fleet: fleet_client.FleetClient, request: messages.RequestMessage) -> TrainRequest:
    fetch = lambda id_: fleet.fetch(request.run, id_)  # noqa: E731
    ids = flower_objects.records(request.id, fetch)
    return protocol.from_record(TrainRequest, messages.config_record(fetch(ids[protocol.RECORD])))


def test_a_tree_of_too_many_objects_is_not_taken(tmp_path, honest_alone):
    """Many tiny objects, and a tree that doubles at each level, so that all ways through it cannot be walked."""
    with Stage(tmp_path, 2, 1, *SOON) as stage:
        for liar, make in zip(stage.liars, (wide, doubling), strict=True):
            fleet = liar.connect(stage.home, stage.port)
            request = request_of(fleet)
            parcel = make()
            about = wire.Metadata.FromString(messages.reply_metadata(request, time.time()))
            about.message_id = parcel.tree.id
            with contextlib.suppress(fleet_client.UnreachableError):
                fleet.push(messages.ReplyMessage(about, parcel))
        result = stage.done()
        for name, liar in zip(("30,000 tiny objects", "a tree of 2^60 ways"), stage.liars, strict=True):
            verdict = stage.verdict_on(liar)
            audited = stage.audited(actor="gate", verdict=verdict, site=liar.site)
            row(name, verdict, audited, result == honest_alone)
            assert (verdict, audited, result) == ("bad-message", True, honest_alone)


def made(
    kind: str, children: list[flower_objects.Tree], body: bytes, make: dict[str, Callable[[], bytes]]
) -> flower_objects.Tree:
    content = flower_objects.join(kind, (child.id for child in children), body)
    make[flower_objects.object_id(content)] = lambda: content
    return flower_objects.Tree(flower_objects.object_id(content), tuple(children))


def wide() -> flower_objects.Parcel:
    make: dict[str, Callable[[], bytes]] = {}
    leaves = [made("ArrayChunk", [], str(n).encode(), make) for n in range(30_000)]
    top = flower_objects.object_id(flower_objects.join("Message", (), b""))
    make[top] = lambda: flower_objects.join("Message", (), b"")
    return flower_objects.Parcel(flower_objects.Tree(top, tuple(leaves)), make)


def doubling() -> flower_objects.Parcel:
    make: dict[str, Callable[[], bytes]] = {}
    tree = made("ArrayChunk", [], b"", make)
    for level in range(60):
        again = flower_objects.Tree(tree.id)
        tree = made("ArrayChunk", [tree, again], str(level).encode(), make)
    return flower_objects.Parcel(tree, make)


def test_a_second_reply_to_one_request_is_not_taken(tmp_path, honest_alone):
    """What was judged stays judged: nobody tries until it fits."""
    with Stage(tmp_path, hostile=1) as stage:
        fleet = stage.mallory.connect(stage.home, stage.port)
        request = request_of(fleet)
        about = asked(fleet, request)
        stage.mallory.push(fleet, request, Draft(about, {}, {"w": b"x"}, {}, {}))
        stage.mallory.push(fleet, request, Draft(about, {}, {"v": b"y"}, {}, {}))
        second = stage.mallory.sent
        result = stage.done()
        got, audited = stage.verdict(), stage.audited(site=stage.mallory.site, verdict="missing-tensor")
        row("two replies to one request", got, audited, result == honest_alone)
        assert (got, second, audited, result) == ("missing-tensor", 0, True, honest_alone)


def test_nobody_answers_in_another_site_s_place(tmp_path, honest_alone):
    """Even a liar who came to know the message id of an honest site's request."""
    with Stage(tmp_path, hostile=1) as stage:
        victim, hold, taken = stage.honest[0], threading.Event(), []
        answer = victim.answer

        def slowly(fleet: fleet_client.FleetClient, request: messages.RequestMessage) -> None:
            taken.append((request, asked(fleet, request)))
            hold.wait(60)
            answer(fleet, request)

        victim.answer = slowly
        fleet = stage.mallory.connect(stage.home, stage.port)
        fleet.activate(60)
        while not taken:
            time.sleep(0.05)
        with pytest.raises(transport_errors.GoneError):
            stage.mallory.push(fleet, taken[0][0], Draft(taken[0][1], {}, {"w": b"x"}, {}, {}))
        hold.set()
        stage.ledger.revoke_site("liar-0")
        result = stage.done()
        got, sent = stage.ledger.verdicts(1)[victim.site].verdict, stage.mallory.sent
        audited = stage.audited(actor="fleet-api", code=403, why="a reply in another site's place")
        row("a reply in another site's place", 403 if not sent else "TAKEN", audited, result == honest_alone)
        assert (got, sent, audited, result) == (VerdictCode.ADMITTED, 0, True, honest_alone)


def test_a_site_confirms_away_nobody_s_message(tmp_path, honest_alone):
    """Confirming deletes: a reply while it is read, another site's request. Both are refused and audited."""
    with Stage(tmp_path, hostile=1) as stage:
        victim, hold, taken = stage.honest[0], threading.Event(), []
        answer = victim.answer

        def slowly(fleet: fleet_client.FleetClient, request: messages.RequestMessage) -> None:
            taken.append(request)
            hold.wait(60)
            answer(fleet, request)

        victim.answer = slowly
        fleet = stage.mallory.connect(stage.home, stage.port)
        request = request_of(fleet)
        while not taken:
            time.sleep(0.05)
        roots: list[str] = []
        real = stage.link.store.fetcher

        def read_slowly(root: str) -> flower_objects.Fetch:
            roots.append(root)
            time.sleep(0.5)
            return real(root)

        stage.link.store.fetcher = read_slowly
        stage.mallory.push(
            fleet, request, stage.mallory.draft(asked(fleet, request), load_file(stage.home.checkpoint(0)))
        )
        while not roots:
            time.sleep(0.01)
        for root in (taken[0].id, roots[0]):
            with pytest.raises(transport_errors.GoneError):
                fleet.confirm(dataclasses.replace(request, id=root))
        hold.set()
        stage.done()
        audited = stage.audited(actor="fleet-api", code=403, why="confirms a message that was not sent to it")
        got = [stage.verdict_on(hospital) for hospital in (victim, stage.mallory)]
        row("somebody's message confirmed away", 403, audited)
        assert got == [VerdictCode.ADMITTED, VerdictCode.ADMITTED] and audited


def test_a_stolen_node_key_alone_does_not_cost_the_hospital_its_place(tmp_path, honest_alone):
    """The thief takes the request and answers without the site's signature; the hospital answers as well."""
    with Stage(tmp_path) as stage:
        victim, answer, thefts = stage.honest[0], stage.honest[0].answer, []

        def robbed(fleet: fleet_client.FleetClient, request: messages.RequestMessage) -> None:
            if len(thefts) < 2:  # the thief was faster
                thefts.append(request)
                record = {protocol.RECORD: {"junk": 1}}
                fleet.push(messages.reply(messages.reply_metadata(request, time.time()), record, {}, 1.0))
            else:
                answer(fleet, request)

        victim.answer = robbed
        result = stage.done()
        got, audited = stage.verdict_on(victim), stage.audited(actor="gate", site=victim.site, verdict="bad-record")
        row("a stolen node key answers junk", got, audited, result == honest_alone)
        assert (got, audited, result, len(thefts)) == (VerdictCode.ADMITTED, True, honest_alone, 2)
