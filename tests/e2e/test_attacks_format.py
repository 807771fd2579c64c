"""Replies that are signed and complete, but break the object format in places where a parser trusts it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable

import pytest
from flwr.proto import message_pb2 as wire

from tests.e2e.arena import Draft, Hospital, Stage, request_of, row
from usfmae.client.flower import messages
from usfmae.core import flower_objects
from usfmae.core.federated.messages import RAW, RECORD, UPDATE, VerdictCode

pytestmark = pytest.mark.attacks


@dataclasses.dataclass
class Form:
    """How a reply's objects are written down; each attack changes one of them."""

    record: Callable[[bytes], bytes] = lambda body: body
    names: Callable[[dict[str, str]], bytes] = lambda names: json.dumps(names).encode()
    array: Callable[[dict[str, object]], bytes] = lambda about: json.dumps(about).encode()
    content: Callable[[dict[str, str]], bytes] = lambda names: json.dumps(names).encode()
    chunk: str = "ArrayChunk"
    message: Callable[[bytes], bytes] = lambda body: body


ATTACKS = {
    "a record that is no protobuf": Form(record=lambda body: b"\xff" * 40),
    "a message that is no protobuf": Form(message=lambda body: b"\xff" * 40),
    "records named by lists": Form(content=lambda names: json.dumps({k: [v] for k, v in names.items()}).encode()),
    "tensors named by lists": Form(names=lambda names: json.dumps({k: [v] for k, v in names.items()}).encode()),
    "a shape beyond all numbers": Form(array=lambda about: json.dumps(about).replace("[", "[1e999,", 1).encode()),
    "text nested 5,000 deep": Form(array=lambda about: b"[" * 5_000 + b"]" * 5_000),
    "names nested 5,000 deep": Form(names=lambda names: b"[" * 5_000 + b"]" * 5_000),
    "a chunk that is something else": Form(chunk="ConfigRecord"),
    "a chunk that was never announced": Form(
        array=lambda about: json.dumps({**about, "arraychunk_ids": [-2, 0]}).encode(),
    ),
}


def crafted(liar: Hospital, request: messages.RequestMessage, draft: Draft, form: Form) -> messages.ReplyMessage:
    make: dict[str, Callable[[], bytes]] = {}

    def made(kind: str, children: list[flower_objects.Tree], body: bytes) -> flower_objects.Tree:
        unique = tuple({child.id: child for child in children}.values())
        content = flower_objects.join(kind, (child.id for child in unique), body)
        make[flower_objects.object_id(content)] = lambda: content
        return flower_objects.Tree(flower_objects.object_id(content), unique)

    arrays = {}
    for name, data in draft.payload.items():
        about = {"dtype": draft.asked.encoding, "shape": draft.shapes[name], "stype": RAW, "arraychunk_ids": [0]}
        arrays[name] = made("Array", [made(form.chunk, [], data)], form.array(about))
    update = made("ArrayRecord", list(arrays.values()), form.names({n: t.id for n, t in arrays.items()}))
    record = made("ConfigRecord", [], form.record(messages.config_body(liar.signed(draft))))
    content = made("RecordDict", [record, update], form.content({RECORD: record.id, UPDATE: update.id}))
    about = wire.Metadata.FromString(messages.reply_metadata(request, time.time()))
    root = made("Message", [content], form.message(wire.Message(metadata=about).SerializeToString()))
    about.message_id = root.id
    return messages.ReplyMessage(about, flower_objects.Parcel(root, make))


@pytest.fixture(scope="module")
def siege(tmp_path_factory):
    with Stage(tmp_path_factory.mktemp("format"), len(ATTACKS), 1, "rounds.deadline=30") as stage:
        for liar, form in zip(stage.liars, ATTACKS.values(), strict=True):
            fleet = liar.connect(stage.home, stage.port)
            request = request_of(fleet)
            fleet.push(crafted(liar, request, liar.take(fleet, request), form))
        yield stage, stage.done()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_reply_that_breaks_the_format_is_dropped_and_costs_nobody_else(attack, siege, honest_alone):
    stage, result = siege
    liar = stage.liars[list(ATTACKS).index(attack)]
    got = stage.verdict_on(liar)
    audited = stage.audited(actor="gate", site=liar.site, verdict=got, status="refused")
    row(attack, got, audited, result == honest_alone)
    assert (got, audited, result) == ("bad-message", True, honest_alone)


def test_a_reply_in_order_made_by_the_same_hand_is_admitted(tmp_path):
    """Else the attacks above would prove nothing."""
    with Stage(tmp_path, hostile=1) as stage:
        fleet = stage.mallory.connect(stage.home, stage.port)
        request = request_of(fleet)
        fleet.push(crafted(stage.mallory, request, stage.mallory.take(fleet, request), Form()))
        stage.done()
        assert stage.verdict() == VerdictCode.ADMITTED
