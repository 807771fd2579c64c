"""Flower's fleet handlers, called straight: one ASGI application that parses, checks the node, calls and answers.

Flower mounts the same handlers behind FastAPI and four middlewares, which cost more than a chunk's transfer on one
machine. node_auth has checked the caller's signature before; what is left of Flower's node authentication, that the
node id belongs to the key, is checked here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Proto

from usfmae.core.flower_objects import FLEET_PATH, HOLD_HEADER, NODE_UNKNOWN, FleetCall
from usfmae.server.flower.link_state import State
from usfmae.server.flower.node_auth import CALLER, CallRefused, Receive, Scope, Send
from usfmae.server.flower.pinned import API_ERROR_MAP, FlowerError, GetRunRequest, beat, fleet, wire
from usfmae.server.flower.pinned import fleet_handlers as handlers

logger = logging.getLogger(__name__)

Handler = Callable[[Any, State], Proto]


def _confirm(request: wire.ConfirmMessageReceivedRequest, state: State) -> Proto:
    """A site may say that it holds a request of its own; Flower would let it delete anybody's message."""
    if not state.confirmable(request.message_object_id, CALLER.get()):
        raise CallRefused(403, "confirms a message that was not sent to it")
    answer: Proto = handlers.confirm_message_received(request, state, state.object_store)
    return answer


CALLS: dict[FleetCall, tuple[type[Proto], Handler]] = {
    FleetCall.ACTIVATE: (fleet.ActivateNodeRequest, handlers.activate_node),
    FleetCall.DEACTIVATE: (fleet.DeactivateNodeRequest, handlers.deactivate_node),
    FleetCall.HEARTBEAT: (beat.SendNodeHeartbeatRequest, handlers.send_node_heartbeat),
    FleetCall.PULL_MESSAGES: (
        fleet.PullMessagesRequest,
        lambda request, state: handlers.pull_messages(request, state, state.object_store),
    ),
    FleetCall.PUSH_MESSAGES: (fleet.PushMessagesRequest, handlers.push_messages),
    FleetCall.PULL_OBJECT: (wire.PullObjectRequest, handlers.pull_object),
    FleetCall.PUSH_OBJECT: (wire.PushObjectRequest, handlers.push_object),
    FleetCall.CONFIRM: (wire.ConfirmMessageReceivedRequest, _confirm),
    FleetCall.GET_RUN: (GetRunRequest, handlers.get_run),
}
LONGEST_HOLD = 20.0  # seconds

Waiter = tuple[asyncio.AbstractEventLoop, asyncio.Event]


class FleetApi:
    """The nine calls over a link state. `waits` says whether a message waits for the node with this key."""

    def __init__(self, state: State, waits: Callable[[bytes], bool]) -> None:
        self.state, self.waits = state, waits
        self.held: defaultdict[bytes, list[Waiter]] = defaultdict(list)  # calls that wait for a message, by key
        self.lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call, key = FleetCall(scope["path"].removeprefix(FLEET_PATH)), CALLER.get()
        body = (await receive())["body"]  # node_auth gives it whole
        if call is FleetCall.PULL_MESSAGES:
            await self._hold(key, _seconds(dict(scope["headers"]).get(HOLD_HEADER.encode(), b"")))
        status, kind, answer = await asyncio.to_thread(self._answer, call, key, body)
        headers = [(b"content-type", kind), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _hold(self, key: bytes, seconds: float) -> None:
        """A caller that has nothing else to do is answered when there is a message, or when its time is up."""
        if not seconds:
            return
        waiter = asyncio.get_running_loop(), asyncio.Event()
        with self.lock:
            self.held[key].append(waiter)
        try:
            if not self.waits(key):  # asked once: a later message wakes the call
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(waiter[1].wait(), seconds)
        finally:
            with self.lock:
                self.held[key].remove(waiter)
                if not self.held[key]:
                    del self.held[key]

    def wake(self, key: bytes) -> None:
        """A message waits for the node with this key; from any thread."""
        with self.lock:
            waiters = list(self.held.get(key, ()))
        for loop, event in waiters:
            with contextlib.suppress(RuntimeError):  # the server is stopping
                loop.call_soon_threadsafe(event.set)

    def _answer(self, call: FleetCall, key: bytes, body: bytes) -> tuple[int, bytes, bytes]:
        parse, handle = CALLS[call]
        try:
            request = parse.FromString(body)
            if not self._is_callers(request, key):
                raise CallRefused(401, NODE_UNKNOWN, expected=self._is_stale(request))
            return 200, b"application/protobuf", handle(request, self.state).SerializeToString()
        except CallRefused:
            raise
        except DecodeError:
            raise CallRefused(400, "not a message of this call") from None
        except FlowerError as error:
            api_error = API_ERROR_MAP[error.code]
            logger.info("%s: %s", call, error.message)
            return _refusal(api_error.http_status_code, error.to_json(api_error.public_message))
        except Exception as error:  # whatever a hostile message may raise
            logger.error("%s: %s: %s", call, type(error).__name__, error)
            raise CallRefused(500, f"{call}: {type(error).__name__}") from None

    def _is_stale(self, request: Any) -> bool:
        """Whether no node has this id: after our restart each site calls once under its old one."""
        node = request.node.node_id if hasattr(request, "node") else getattr(request, "node_id", None)
        return node is not None and node not in self.state.nodes

    def _is_callers(self, request: Any, key: bytes) -> bool:
        if isinstance(request, fleet.ActivateNodeRequest):
            return bool(request.public_key == key)
        node = request.node.node_id if hasattr(request, "node") else request.node_id
        return bool(self.state.get_node_id_by_public_key(key) == node)


def _seconds(seconds: bytes) -> float:
    return min(float(seconds), LONGEST_HOLD) if seconds.isdigit() else 0.0


def _refusal(status: int, answer: Mapping[str, Any]) -> tuple[int, bytes, bytes]:
    return status, b"application/json", json.dumps(answer).encode()
