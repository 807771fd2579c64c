"""Every name of Flower that the aggregator uses and Flower does not publish, held against the pinned version.

A red line here after an update of Flower says which part of gateway.py or transit.py to look at.
"""

import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore, ObjectEntry

from usfmae.server import porch
from usfmae.server.gateway import Link
from usfmae.server.transit import TransitStore


def test_flower_is_the_pinned_one():
    pins = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["dependencies"]
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
        ("preregister_object_tree", ["object_tree", "session_id"]),
        ("store_object", ["run_id", "session_id", "object_id", "object_content"]),
        ("start_session", ["run_id"]),
        ("get_message_res", ["message_ids", "run_id"]),
        ("delete_messages", ["message_ins_ids"]),
    ],
)
def test_link_state_has_the_calls_the_gateway_makes(name, arguments):
    found = list(inspect.signature(getattr(InMemoryLinkState, name)).parameters)[1:]
    assert found[: len(arguments)] == arguments


def test_link_state_keeps_its_books_where_the_gateway_looks(tmp_path):
    link = Link(tmp_path, 10**6)
    assert link.state.message_ins_id_to_message_res_id == {} == link.state.message_res_store
    assert link.state.nodes == {} and link.run.status.status == "running"


def test_object_store_has_the_parts_that_transit_replaces():
    assert set(ObjectEntry.__dataclass_fields__) == {"content", "is_available", "child_object_ids", "ref_count", "runs"}
    for name in ("preregister", "put", "get", "delete"):
        wanted = list(inspect.signature(getattr(InMemoryObjectStore, name)).parameters)
        assert list(inspect.signature(getattr(TransitStore, name)).parameters) == wanted


def test_the_fleet_api_has_the_calls_the_porch_lets_through():
    from flwr.superlink.routers.fleet.router import router

    known = {route.path for route in router.routes}
    assert known >= porch.CALLS
    # A new call of the fleet API must be looked at before it is let in.
    assert known - porch.CALLS == {"/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/get-fab"}


def test_node_authentication_uses_the_headers_and_window_the_porch_expects():
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER

    names = (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER)
    assert names == ("flwr-public-key", "flwr-signature", "flwr-timestamp")
    assert (porch.EARLY, porch.LATE) == (-SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE)


def test_a_request_goes_through_the_link_and_its_reply_comes_back(tmp_path):
    """The whole path of a message through Flower's state and our store, without a network."""
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

    link = Link(tmp_path, 10**6)
    node = link.state.create_node("<id:none>", "none", b"key", 30)
    link.state.activate_node(node, 30)
    arrays = ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", b"12345678")})
    content = RecordDict({"usfmae": ConfigRecord({"round": 1}), "encoder": arrays})
    [sent] = link.push_messages([Message(content, node, "train", ttl=600)])
    [received] = link.state.get_message_ins(node, 1)
    assert received.metadata.message_id == sent and link.store.complete(sent)
    assert list(link.pull_messages([sent])) == []

    reply = Message(RecordDict({"usfmae": ConfigRecord({"round": 1, "images": 5})}), reply_to=received)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    session = link.state.start_session(link.run_id)
    slim = message_from_proto(message_to_proto(Message(RecordDict(), metadata=reply.metadata)))
    stored, missing = link.state.store_message_and_object_tree(slim, get_object_tree(reply), session)
    assert stored
    objects = get_all_nested_objects(reply)
    for name in missing[:-1]:
        link.state.store_object(link.run_id, session, name, objects[name].deflate())
    assert list(link.pull_messages([sent])) == []  # not complete: no blocking, no half reply
    link.state.store_object(link.run_id, session, missing[-1], objects[missing[-1]].deflate())
    [answer] = link.pull_messages([sent])
    assert answer.content["usfmae"]["images"] == 5
    assert answer.metadata.reply_to_message_id == sent
    assert len(link.store) == 0 and list(tmp_path.iterdir()) == []
