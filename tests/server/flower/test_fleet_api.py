"""The fleet API as one ASGI application: held calls, and callers that are not who their message says."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from flwr.proto import fleet_pb2 as proto
from flwr.proto import message_pb2 as wire
from flwr.proto.node_pb2 import Node

from usfmae.core.flower_objects import FLEET_PATH, HOLD_HEADER
from usfmae.server.flower.fleet_api import CALLS, FleetApi
from usfmae.server.flower.link_state import LinkState
from usfmae.server.flower.node_auth import CALLER, CallRefused


@pytest.fixture
def link(tmp_path):
    made = LinkState(tmp_path, 10**6)
    node = made.state.create_node("<id:none>", "none", b"key", 30)
    made.state.activate_node(node, 30)
    vars(made)["node"] = node
    return made


def call(app: FleetApi, name: str, body: bytes, key: bytes = b"key", hold: bytes = b"") -> tuple[int, bytes]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    async def run() -> None:
        CALLER.set(key)
        await app({"path": FLEET_PATH + name, "headers": [(HOLD_HEADER.encode(), hold)] if hold else []}, receive, send)

    try:
        asyncio.run(run())
    except CallRefused as refusal:  # node_auth answers, and has it audited
        return refusal.status, refusal.why.encode()
    return sent[0]["status"], sent[1]["body"]


def pull(node: int) -> bytes:
    return proto.PullMessagesRequest(node=Node(node_id=node)).SerializeToString()


def test_a_call_is_held_only_where_the_caller_says_so_and_no_longer(link):
    never = FleetApi(link.state, lambda key: False)
    started = time.monotonic()
    assert call(never, "pull-messages", pull(link.node))[0] == 200
    assert call(never, "pull-messages", pull(link.node), hold=b"-5e9")[0] == 200
    assert time.monotonic() - started < 0.9
    assert call(never, "pull-messages", pull(link.node), hold=b"1")[0] == 200
    assert time.monotonic() - started > 0.9 and not never.held


def test_500_held_calls_ask_once_each_and_wake_at_their_own_message_alone(link):
    keys: list[bytes] = []
    app = FleetApi(link.state, lambda key: bool(keys.append(key)))

    async def held(number: int) -> float:
        started = time.monotonic()
        await app._hold(f"key-{number}".encode(), 1.0)
        return time.monotonic() - started

    async def run() -> list[float]:
        calls = [asyncio.create_task(held(number)) for number in range(500)]
        await asyncio.sleep(0.2)
        await asyncio.to_thread(app.wake, b"key-7")
        return list(await asyncio.gather(*calls))

    waited = asyncio.run(run())
    assert len(keys) == 500
    assert [number for number, seconds in enumerate(waited) if seconds < 0.9] == [7]


def test_a_request_wakes_the_node_it_is_for(link):
    woken: list[bytes] = []
    link.on_request = woken.append
    assert link.send(link.node, {"record": {"a": 1}}, {}, 60) and woken == [b"key"]


def confirm(node: int, root: str) -> bytes:
    return wire.ConfirmMessageReceivedRequest(node=Node(node_id=node), message_object_id=root).SerializeToString()


def test_a_site_confirms_its_own_requests_and_nothing_else(link):
    other = link.state.create_node("<id:none>", "none", b"other", 30)
    link.state.activate_node(other, 30)
    mine, theirs = (link.send(node, {"record": {"a": 1}}, {}, 60) for node in (link.node, other))
    link.store.replies["f" * 64] = []  # somebody's reply, on its way or being read
    app = FleetApi(link.state, lambda key: False)
    for root in (theirs, "f" * 64):
        status, why = call(app, "confirm-message-received", confirm(link.node, root))
        assert status == 403 and b"not sent to it" in why
    assert theirs in link.store.offers and "f" * 64 in link.store.replies
    run = wire.ConfirmMessageReceivedRequest(node=Node(node_id=link.node), message_object_id=mine, run_id=link.run_id)
    assert call(app, "confirm-message-received", run.SerializeToString())[0] == 200
    assert mine not in link.store.offers
    gone = wire.ConfirmMessageReceivedRequest(node=Node(node_id=link.node), message_object_id="e" * 64)
    gone.run_id = link.run_id
    assert call(app, "confirm-message-received", gone.SerializeToString())[0] == 200


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


@pytest.mark.parametrize("name", CALLS)
def test_an_unforeseen_exception_costs_its_call(link, monkeypatch, name):
    """Another call of the same kind fails as well, every other one is answered, and the refusal is audited by its why."""
    app = FleetApi(link.state, lambda key: True)

    def unforeseen(*_: object) -> None:
        raise ZeroDivisionError("nobody thought of this")

    parse, _ = CALLS[name]
    monkeypatch.setitem(CALLS, name, (parse, unforeseen))
    monkeypatch.setattr(FleetApi, "_is_callers", lambda *_: True)
    assert call(app, name, parse().SerializeToString()) == (500, f"{name}: ZeroDivisionError".encode())
    other = "pull-messages" if name != "pull-messages" else "push-messages"
    monkeypatch.undo()
    assert call(app, other, pull(link.node))[0] == 200 or other != "pull-messages"
