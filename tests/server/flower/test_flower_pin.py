"""Every name of Flower that the aggregator uses and Flower does not publish, held against the pinned version.

A red line here after an update of Flower says which part of link_state.py, object_store.py or fleet_api.py to look at.
"""

import hashlib
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore, ObjectEntry
from safetensors.numpy import save_file

from usfmae.core import flower_objects
from usfmae.core.federated.messages import TrainRequest, to_record
from usfmae.server.flower import fleet_api, node_auth
from usfmae.server.flower.gateway_transport import GatewayTransport
from usfmae.server.flower.link_state import LinkState
from usfmae.server.flower.object_store import DiskObjectStore
from usfmae.server.rounds.transport import RoundTask


def test_flower_is_the_pinned_one():
    pins = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["dependencies"]
    pin = next(p for p in pins if p.startswith("flwr=="))
    assert version("flwr").startswith(pin.removeprefix("flwr==").rstrip("*"))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("create_run", ["fab_id", "fab_version", "fab_hash", "override_config", "federation_id", "federation_config"]),
        ("create_node", ["owner_aid", "owner_name", "public_key", "heartbeat_interval"]),
        ("delete_node", ["owner_aid", "node_id"]),
        ("claim_task", ["task_id"]),
        ("activate_task", ["task_id"]),
        ("acknowledge_task_heartbeat", ["task_id"]),
        ("get_node_id_by_public_key", ["public_key"]),
        ("store_message_ins", ["message"]),
        ("store_message_and_object_tree", ["message", "object_tree", "session_id"]),
        ("store_object", ["run_id", "session_id", "object_id", "object_content"]),
        ("start_session", ["run_id"]),
        ("get_message_res", ["message_ids", "run_id"]),
        ("delete_messages", ["message_ins_ids"]),
        ("_cleanup_push_session", ["session_id", "cleanup_messages"]),
    ],
)
def test_link_state_has_the_calls_the_gateway_makes(name, arguments):
    parameters = list(inspect.signature(getattr(InMemoryLinkState, name)).parameters)[1:]
    assert parameters[: len(arguments)] == arguments


def test_link_state_keeps_its_books_where_the_gateway_looks(tmp_path):
    link = LinkState(tmp_path, 10**6)
    assert link.state.message_ins_id_to_message_res_id == {} == link.state.message_res_store
    assert link.state._object_push_sessions == {} == link.state._object_push_session_by_root
    assert link.state.nodes == {} and link.state.get_run_info(run_ids=[link.run_id])[0].status.status == "running"


def test_object_store_has_the_parts_that_our_store_replaces():
    assert set(ObjectEntry.__dataclass_fields__) == {"content", "is_available", "child_object_ids", "ref_count", "runs"}
    for name in ("preregister", "put", "get", "get_object_tree", "delete"):
        wanted = list(inspect.signature(getattr(InMemoryObjectStore, name)).parameters)
        assert list(inspect.signature(getattr(DiskObjectStore, name)).parameters) == wanted


def test_the_fleet_api_has_the_calls_node_auth_lets_through():
    from flwr.superlink.routers.fleet.router import router

    paths = {getattr(route, "path", "") for route in router.routes}
    assert paths >= node_auth.CALLS
    # A new call of the fleet API must be looked at before it is let in.
    assert paths - node_auth.CALLS == {"/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/get-fab"}


def test_node_authentication_uses_the_headers_and_window_node_auth_expects():
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER

    names = (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER)
    ours = flower_objects.PUBLIC_KEY_HEADER, flower_objects.SIGNATURE_HEADER, flower_objects.TIMESTAMP_HEADER
    assert names == ours
    assert (node_auth.EARLY, node_auth.LATE) == (-SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE)


def test_every_call_node_auth_lets_through_has_flowers_own_handler():
    from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
    from flwr.superlink.servicer.fleet import fleet_handlers

    assert {call.path for call in fleet_api.CALLS} == node_auth.CALLS
    for call, (request, _) in fleet_api.CALLS.items():
        assert PROTOBUF_REQUEST_TYPES["POST", call.path] is request
        parameters = list(inspect.signature(getattr(fleet_handlers, call.replace("-", "_"))).parameters)
        assert parameters in (["request", "state"], ["request", "state", "store"])


def test_a_request_goes_through_the_link_and_its_reply_comes_back(tmp_path):
    """The whole path of a message through Flower's state and our store; what a site gets is what Flower would send."""
    link = LinkState(tmp_path / "transit", 10**6)
    node = link.state.create_node("<id:none>", "none", b"key", 30)
    link.state.activate_node(node, 30)
    file = tmp_path / "encoder.safetensors"
    weights = np.random.default_rng(1).normal(size=(700, 2000)).astype(np.float32)  # more than one chunk
    save_file({"w": weights, "b": np.ones(3, np.float32)}, file)
    wire = GatewayTransport(link, dict)
    wire.nodes["site"] = node
    request = TrainRequest("c", 1, "b", 0, 1, "{}")
    sent = wire.ask(RoundTask("site", request, file))
    assert link.waits(b"key") and not link.waits(b"other")
    [received] = link.state.get_message_ins(node, 1)
    assert received.metadata.message_id == sent and not link.waits(b"key")
    tree = link.store.get_object_tree(sent)
    contents = {
        part.object_id: link.state.get_object(link.run_id, part.object_id) for part in iterate_object_tree(tree)
    }
    assert all(hashlib.sha256(content).hexdigest() == id_ for id_, content in contents.items())
    inflated: Any = inflate_object_from_contents(sent, dict(contents))
    assert np.array_equal(inflated.content["encoder"]["w"].numpy(), weights)
    assert ArrayRecord({"b": Array(np.ones(3, np.float32)), "w": Array(weights)}).object_id in contents
    assert dict(inflated.content["usfmae"]) == to_record(request)
    assert list(wire.answers([sent])) == []

    update = ArrayRecord({"w": Array("int8", (8,), "usfmae.raw", b"12345678")})
    reply = Message(RecordDict({"usfmae": ConfigRecord({"images": 5}), "update": update}), reply_to=received)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    session = link.state.start_session(link.run_id)
    slim = message_from_proto(message_to_proto(Message(RecordDict(), metadata=reply.metadata)))
    stored, missing = link.state.store_message_and_object_tree(slim, get_object_tree(reply), session)
    assert stored
    objects = get_all_nested_objects(reply)
    for name in missing[:-1]:
        link.state.store_object(link.run_id, session, name, objects[name].deflate())
    assert list(wire.answers([sent])) == []  # not complete: no blocking, no half reply
    link.state.store_object(link.run_id, session, missing[-1], objects[missing[-1]].deflate())
    for answer in wire.answers([sent]):
        assert answer.message == sent and answer.record == {"images": 5} and not answer.error
        assert answer.arrays["w"].read(8) == b"12345678"
    assert len(link.store) == 0 and not link.store.offers and list((tmp_path / "transit").iterdir()) == []
