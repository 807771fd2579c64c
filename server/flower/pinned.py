"""Every name of Flower's that the aggregator uses and Flower does not publish: the pin is flwr 1.41.

tests/server/flower/test_flower_pin.py holds them against the installed Flower; another version begins here.
"""

from __future__ import annotations

from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, ErrorCode
from flwr.proto import fleet_pb2 as fleet
from flwr.proto import heartbeat_pb2 as beat
from flwr.proto import message_pb2 as wire
from flwr.proto.run_pb2 import GetRunRequest
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import NOOP_FEDERATION_ID, NodeStatus, TaskType
from flwr.supercore.error import FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.inflatable.inflatable_object import get_object_id, is_valid_sha256_hash, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore, ObjectEntry
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.servicer.fleet import fleet_handlers

ObjectTree = wire.ObjectTree

__all__ = [
    "API_ERROR_MAP",
    "NOOP_ACCOUNT_NAME",
    "NOOP_FEDERATION_ID",
    "NOOP_FLWR_AID",
    "SUPERLINK_NODE_ID",
    "ErrorCode",
    "FlowerError",
    "GetRunRequest",
    "InMemoryLinkState",
    "InMemoryObjectStore",
    "NoObjectInStoreError",
    "NoOpFederationManager",
    "NodeStatus",
    "ObjectEntry",
    "ObjectTree",
    "TaskIdentity",
    "TaskType",
    "beat",
    "fleet",
    "fleet_handlers",
    "get_object_id",
    "is_valid_sha256_hash",
    "iterate_object_tree",
    "validate_object_content",
    "wire",
]
