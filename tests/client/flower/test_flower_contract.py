"""Every name that the site's wire rests on and Flower does not publish, held against the installed Flower."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common import constant
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore import constant as supercore
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, verify_signature
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.superlink.routers.fleet.router import router
from flwr.supernode.fleet_http_client import FleetHttpClient

from usfmae.client.flower import download, fleet_client, messages, transport_errors
from usfmae.core import flower_objects
from usfmae.core.keys import public_pem


def test_the_pin_is_the_version_these_names_were_read_in() -> None:
    assert importlib.metadata.version("flwr").startswith("1.41.")


def test_paths_are_those_of_flowers_own_client_and_served_by_its_router() -> None:
    source = Path(str(__import__("inspect").getsourcefile(FleetHttpClient))).read_text()
    paths = set(re.findall(r'"(/v1/fleet/[a-z-]+)"', source))
    served = {getattr(route, "path", "") for route in router.routes}
    for path in (call.path for call in flower_objects.FleetCall if call != "get-run"):
        assert path in paths
        assert any(path.endswith(route) for route in served if route)


def test_headers_media_type_and_object_sizes() -> None:
    assert flower_objects.PUBLIC_KEY_HEADER == supercore.FLEET_HTTP_PUBLIC_KEY_HEADER
    assert flower_objects.SIGNATURE_HEADER == supercore.FLEET_HTTP_SIGNATURE_HEADER
    assert flower_objects.TIMESTAMP_HEADER == constant.TIMESTAMP_HEADER
    assert fleet_client.MEDIA_TYPE == PROTOBUF_MEDIA_TYPE
    assert flower_objects.CHUNK == constant.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
    window = constant.SYSTEM_TIME_TOLERANCE, constant.TIMESTAMP_TOLERANCE + constant.SYSTEM_TIME_TOLERANCE
    assert -window[0] <= transport_errors.EARLIEST < 0 < transport_errors.LATEST <= window[1]


def test_the_signature_is_one_flower_accepts() -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    key = generate_private_key(SECP384R1())
    assert public_pem(key).encode() == public_key_to_bytes(key.public_key())
    assert verify_signature(key.public_key(), b"now", key.sign(b"now", ECDSA(SHA256())))


def message(seed: int = 0) -> Message:
    """A request with what may be awkward: equal tensors, an empty one, a scalar, one of several chunks."""
    rng = np.random.default_rng(seed)
    big = rng.standard_normal(flower_objects.CHUNK // 4 + 1000).astype(np.float32)
    arrays = {"same": np.zeros((3, 2), "<f4"), "again": np.zeros((3, 2), "<f4"), "none": np.zeros((0, 4), "<f4")}
    arrays |= {"one": np.ones((), "<f4"), "big": big, "zeros": np.zeros(flower_objects.CHUNK, "<f4")}
    content = RecordDict(
        {
            "usfmae": ConfigRecord({"text": "é", "whole": -3, "real": 0.5, "yes": True, "large": 2**63 + 1}),
            "encoder": ArrayRecord({name: Array(value) for name, value in arrays.items()}),
        }
    )
    metadata = Metadata(2**63 + 5, "", 1, 2**63 + 9, "", "4", 1000.5, 60.0, MessageType.TRAIN, 11, None)
    return make_message(metadata, content)


def stored(sent: Message) -> dict[str, bytes]:
    return {id_: item.deflate() for id_, item in get_all_nested_objects(sent).items()}


def test_a_message_made_by_flower_is_read_whole(tmp_path: Path) -> None:
    sent = message()
    store = stored(sent)
    ids = flower_objects.records(sent.object_id, store.__getitem__)
    assert set(ids) == {"usfmae", "encoder"}
    assert messages.config_record(store[ids["usfmae"]]) == dict(sent.content["usfmae"])  # type: ignore[arg-type]
    from safetensors.numpy import load_file

    download.receive(ids["encoder"], store.__getitem__, tmp_path / "e.safetensors", 1e9)
    tensors = load_file(tmp_path / "e.safetensors")
    for name, array in sent.content["encoder"].items():  # type: ignore[union-attr]
        assert np.array_equal(tensors[name], array.numpy()) and tensors[name].shape == array.shape


def test_a_reply_made_here_has_the_ids_flower_gives_it_and_inflates_to_the_same() -> None:
    sent = message()
    sent.metadata.__dict__["_message_id"] = sent.object_id
    request = messages.RequestMessage(
        message_to_proto(sent).metadata.SerializeToString(deterministic=True), sent.object_id
    )
    data = {"w": bytes(range(256)) * 30000, "b": b"\0" * (2 * flower_objects.CHUNK), "empty": b""}
    parts = {
        name: flower_objects.Part("int8", (len(raw),), "usfmae.raw", len(raw), lambda a, b, raw=raw: raw[a:b])
        for name, raw in data.items()
    }
    record = {"campaign": "demo", "round": 4, "loss": 0.25, "ok": True}
    metadata = messages.reply_metadata(request, 1001.0)
    made = messages.reply(metadata, {"usfmae": record}, {"update": flower_objects.array_record(parts)})

    arrays = {name: Array("int8", (len(raw),), "usfmae.raw", raw) for name, raw in data.items()}
    content = RecordDict({"usfmae": ConfigRecord(record), "update": ArrayRecord(arrays)})
    theirs = Message(content, reply_to=sent)
    theirs.metadata.created_at = 1001.0
    theirs.metadata.ttl = made.metadata.ttl
    assert made.parcel.tree.id == theirs.object_id
    assert fleet_client._tree(made.parcel.tree) == get_object_tree(theirs)
    contents = dict(made.parcel.contents(flower_objects.walk(made.parcel.tree)))
    assert contents == stored(theirs)
    inflated = inflate_object_from_contents(made.parcel.tree.id, contents)
    assert {n: a.data for n, a in inflated.content["update"].items()} == data  # type: ignore[attr-defined]


def test_reply_metadata_is_what_flower_expects_of_a_reply() -> None:
    received = message()
    received.metadata.__dict__["_message_id"] = received.object_id
    request = messages.RequestMessage(message_to_proto(received).metadata.SerializeToString(), received.object_id)
    sent = messages.reply(messages.reply_metadata(request, 1010.5), {"usfmae": {"round": 1}}, {})
    bare = fleet_client.wire.Message(metadata=sent.metadata, content=messages.records.RecordDict())
    read = message_from_proto(bare)
    assert remove_content_from_message(read).metadata == read.metadata
    assert read.metadata.reply_to_message_id == received.object_id
    assert (read.metadata.src_node_id, read.metadata.dst_node_id) == (2**63 + 9, 1)
    assert (read.metadata.dst_task_id, read.metadata.src_task_id) == (11, None)
    assert read.metadata.created_at + read.metadata.ttl == pytest.approx(1060.5)
    assert request.run == 2**63 + 5 and request.expires == pytest.approx(1060.5)
