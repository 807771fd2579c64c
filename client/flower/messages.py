"""Requests and replies in Flower's messages: metadata, scalar records, and arrays that are read as they are sent.

The protobuf types are Flower's (pin 1.41); fleet_client.py carries what is made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from usfmae.client.flower.pinned import records, wire
from usfmae.core import flower_objects
from usfmae.core.errors import PolicyError


@dataclass(frozen=True)
class RequestMessage:
    """A message that waits for an answer: its metadata as it came, and the id of its root object."""

    metadata: bytes  # serialised flwr Metadata
    id: str

    @property
    def run(self) -> int:
        return int(wire.Metadata.FromString(self.metadata).run_id)

    @property
    def expires(self) -> float:
        """Unix time after which the aggregator takes no answer to it."""
        metadata = wire.Metadata.FromString(self.metadata)
        return float(metadata.created_at + metadata.ttl)


@dataclass(frozen=True)
class ReplyMessage:
    metadata: wire.Metadata
    parcel: flower_objects.Parcel
    seconds: float = 0.0


def reply_metadata(request: RequestMessage, created: float) -> bytes:
    """Metadata of the answer to a request. It lies on disk: the same bytes make the same id, so an upload goes on."""
    sent = wire.Metadata.FromString(request.metadata)
    metadata = wire.Metadata(
        run_id=sent.run_id,
        src_node_id=sent.dst_node_id,
        dst_node_id=sent.src_node_id,
        reply_to_message_id=request.id,
        group_id=sent.group_id,
        ttl=sent.created_at + sent.ttl - created,
        message_type=sent.message_type,
        created_at=created,
    )
    if sent.HasField("dst_task_id"):
        metadata.src_task_id = sent.dst_task_id
    if sent.HasField("src_task_id"):
        metadata.dst_task_id = sent.src_task_id
    return bytes(metadata.SerializeToString(deterministic=True))


def reply(
    metadata: bytes,
    config: Mapping[str, Mapping[str, Any]],
    arrays: Mapping[str, flower_objects.Arrays],
    seconds: float = 0.0,
) -> ReplyMessage:
    """A message of scalar records and arrays that are read from disk as they are sent."""
    header = wire.Metadata.FromString(metadata)
    body = wire.Message(metadata=header).SerializeToString(deterministic=True)
    bodies = {name: config_body(record) for name, record in config.items()}
    parcel = flower_objects.parcel(body, bodies, arrays)
    header.message_id = parcel.tree.id
    return ReplyMessage(header, parcel, seconds)


_FIELDS: tuple[tuple[type, str], ...] = ((bool, "bool"), (int, "sint64"), (float, "double"), (str, "string"))


def config_body(record: Mapping[str, str | int | float | bool]) -> bytes:
    """Body of a ConfigRecord of scalars."""
    items = []
    for key, value in record.items():
        field = next(name for kind, name in _FIELDS if isinstance(value, kind))
        item = records.ConfigRecordValue()
        setattr(item, field, value)
        items.append(records.ConfigRecord.Item(key=key, value=item))
    return bytes(records.ConfigRecord(items=items).SerializeToString())


def config_record(content: bytes) -> dict[str, Any]:
    """Scalars of a ConfigRecord object; lists and bytes come as None and fail the protocol's type check.

    PolicyError where it is none.
    """
    try:
        record = records.ConfigRecord.FromString(bytes(flower_objects.expect(content, "ConfigRecord").body))
    except DecodeError:
        raise PolicyError("message object ConfigRecord", "is malformed", "refused") from None
    values = {}
    for item in record.items:
        field = item.value.WhichOneof("value")
        plain = field in ("double", "sint64", "uint64", "bool", "string")
        values[item.key] = getattr(item.value, field) if plain else None
    return values
