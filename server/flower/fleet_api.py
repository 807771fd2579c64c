"""Flower's fleet handlers, called straight: one ASGI application that parses, checks the node, calls and answers.

Flower mounts the same handlers behind FastAPI and four middlewares, which cost more than a chunk's transfer on one
machine. node_auth has checked the caller's signature before; what is left of Flower's node authentication, that the
node id belongs to the key, is checked here.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from flwr.proto import fleet_pb2 as fleet
from flwr.proto import heartbeat_pb2 as beat
from flwr.proto import message_pb2 as wire
from flwr.proto.run_pb2 import GetRunRequest
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.error import FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.superlink.servicer.fleet import fleet_handlers as handlers
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Proto

from usfmae.server.flower.node_auth import CALLER, FLEET, CallRefused, Receive, Scope, Send

logger = logging.getLogger(__name__)

Handler = Callable[[Any, LinkState], Proto]

CALLS: dict[str, tuple[type[Proto], Handler]] = {
    "activate-node": (fleet.ActivateNodeRequest, handlers.activate_node),
    "deactivate-node": (fleet.DeactivateNodeRequest, handlers.deactivate_node),
    "send-node-heartbeat": (beat.SendNodeHeartbeatRequest, handlers.send_node_heartbeat),
    "pull-messages": (
        fleet.PullMessagesRequest,
        lambda request, state: handlers.pull_messages(request, state, state.object_store),
    ),
    "push-messages": (fleet.PushMessagesRequest, handlers.push_messages),
    "pull-object": (wire.PullObjectRequest, handlers.pull_object),
    "push-object": (wire.PushObjectRequest, handlers.push_object),
    "confirm-message-received": (
        wire.ConfirmMessageReceivedRequest,
        lambda request, state: handlers.confirm_message_received(request, state, state.object_store),
    ),
    "get-run": (GetRunRequest, handlers.get_run),
}
HOLD, LONGEST_HOLD = b"usfmae-hold", 20.0  # header: whole seconds a caller is ready to wait for a message
LOOK = 0.05  # seconds between two looks for a message while a call is held


class FleetApi:
    """The nine calls over a link state. `waits` says whether a message waits for the node with this key."""

    def __init__(self, state: LinkState, waits: Callable[[bytes], bool]) -> None:
        self.state, self.waits = state, waits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name, key = scope["path"].removeprefix(FLEET), CALLER.get()
        body = (await receive())["body"]  # node_auth gives it whole
        if name == "pull-messages":
            await self._hold(key, _asked(dict(scope["headers"]).get(HOLD, b"")))
        status, kind, answer = await asyncio.to_thread(self._answer, name, key, body)
        headers = [(b"content-type", kind), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _hold(self, key: bytes, seconds: float) -> None:
        """A caller that has nothing else to do is answered when there is a message, or when its time is up."""
        end = asyncio.get_running_loop().time() + seconds
        while not self.waits(key) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(LOOK)

    def _answer(self, name: str, key: bytes, body: bytes) -> tuple[int, bytes, bytes]:
        parse, handle = CALLS[name]
        try:
            request = parse.FromString(body)
            if not self._is_callers(request, key):
                raise CallRefused(401, "Invalid SuperNode authentication")
            return 200, b"application/protobuf", handle(request, self.state).SerializeToString()
        except CallRefused:
            raise
        except DecodeError:
            raise CallRefused(400, "not a message of this call") from None
        except FlowerError as error:
            about = API_ERROR_MAP[error.code]
            logger.info("%s: %s", name, error.message)
            return _refusal(about.http_status_code, error.to_json(about.public_message))
        except Exception as error:  # whatever a hostile message may raise
            logger.error("%s: %s: %s", name, type(error).__name__, error)
            raise CallRefused(500, f"{name}: {type(error).__name__}") from None

    def _is_callers(self, request: Any, key: bytes) -> bool:
        if isinstance(request, fleet.ActivateNodeRequest):
            return bool(request.public_key == key)
        node = request.node.node_id if hasattr(request, "node") else request.node_id
        return bool(self.state.get_node_id_by_public_key(key) == node)


def _asked(seconds: bytes) -> float:
    return min(float(seconds), LONGEST_HOLD) if seconds.isdigit() else 0.0


def _refusal(status: int, about: Mapping[str, Any]) -> tuple[int, bytes, bytes]:
    return status, b"application/json", json.dumps(about).encode()
