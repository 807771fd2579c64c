"""The fleet API as one ASGI application: held calls, and callers that are not who their message says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from flwr.proto import fleet_pb2 as proto
from flwr.proto.node_pb2 import Node

from usfmae.server.flower.fleet_api import HOLD, FleetApi
from usfmae.server.flower.link_state import LinkState
from usfmae.server.flower.node_auth import CALLER, FLEET, CallRefused


@pytest.fixture
def link(tmp_path):
    made = LinkState(tmp_path, 10**6)
    made.node = made.state.create_node("<id:none>", "none", b"key", 30)
    made.state.activate_node(made.node, 30)
    return made


def call(app: FleetApi, name: str, body: bytes, key: bytes = b"key", hold: bytes = b"") -> tuple[int, bytes]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    async def run() -> None:
        CALLER.set(key)
        await app({"path": FLEET + name, "headers": [(HOLD, hold)] if hold else []}, receive, send)

    try:
        asyncio.run(run())
    except CallRefused as refusal:  # node_auth answers, and has it audited
        return refusal.status, refusal.why.encode()
    return sent[0]["status"], sent[1]["body"]


def pull(node: int) -> bytes:
    return proto.PullMessagesRequest(node=Node(node_id=node)).SerializeToString()


def test_a_call_is_held_until_there_is_a_message_and_only_where_the_caller_says_so(link):
    looks = iter([False, False, True])
    app = FleetApi(link.state, lambda key: next(looks))
    assert call(app, "pull-messages", pull(link.node), hold=b"20")[0] == 200
    assert next(looks, "none left") == "none left"  # it looked three times, and not for twenty seconds
    never = FleetApi(link.state, lambda key: False)
    assert call(never, "pull-messages", pull(link.node))[0] == 200
    assert call(never, "pull-messages", pull(link.node), hold=b"-5e9")[0] == 200


def test_a_message_of_another_node_is_refused(link):
    app = FleetApi(link.state, lambda key: True)
    assert call(app, "pull-messages", pull(link.node + 1))[0] == 401
    assert call(app, "pull-messages", pull(link.node), key=b"other")[0] == 401
    other = proto.ActivateNodeRequest(public_key=b"other", heartbeat_interval=30).SerializeToString()
    assert call(app, "activate-node", other)[0] == 401


def test_bytes_that_are_no_message_get_400_and_flowers_own_refusal_its_code(link):
    app = FleetApi(link.state, lambda key: True)
    assert call(app, "push-object", b"\xff\xff\xff")[0] == 400
    short = proto.ActivateNodeRequest(public_key=b"key", heartbeat_interval=0.1).SerializeToString()
    status, body = call(app, "activate-node", short)
    assert status >= 400 and b'"code"' in body
