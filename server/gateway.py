"""The gateway: one public TLS port that speaks Flower's fleet API, and a Grid for the round loop behind it.

Flower's link state, fleet routes and node authentication run inside this process. Its control and runtime APIs are not
mounted at all: nobody, inside or outside, can submit code or read the state over the network. This is the only module
of the aggregator with private names of Flower (and `transit`, its object store); tests/server/test_flower_pin.py holds
them against the pinned version.

After a restart the link state is new and empty: sites are registered again from the ledger under new node ids, and the
round loop asks again; a site answers a repeated request from its disk.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import uvicorn
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from fastapi import FastAPI
from flwr.app import Error, Message, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.serverapp import Grid
from flwr.supercore.constant import NOOP_FEDERATION_ID, NodeStatus, TaskType
from flwr.supercore.error import http_error_translator
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as fleet_router
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol

from usfmae.core.config.coordinator import NetworkSettings
from usfmae.core.errors import NetworkError
from usfmae.core.log import note
from usfmae.server.ledger import Site
from usfmae.server.porch import CALLER, App, Porch
from usfmae.server.transit import TransitStore

logger = logging.getLogger(__name__)

STALLED_SECONDS = 180.0  # an upload without a new piece for this long is given up and asked for again
BEAT_SECONDS = 10.0
HEADER_SECONDS = 20.0


class _State(InMemoryLinkState):
    """Flower's link state takes a site's word for who it is and what its reply is called; this one looks."""

    def store_message_and_object_tree(
        self, message: Message, object_tree: ObjectTree, session_id: str
    ) -> tuple[bool, list[str]]:
        root, caller = object_tree.object_id, CALLER.get()
        if caller and self.get_node_id_by_public_key(caller) != message.metadata.src_node_id:
            return False, []
        if root != message.metadata.message_id or root in cast(TransitStore, self.object_store).trusted:
            return False, []
        return super().store_message_and_object_tree(message, object_tree, session_id)


class Link(Grid):
    """Flower's Grid over a link state in this process: pushes requests, pulls complete replies, never blocks."""

    def __init__(self, transit: Path, reply_limit: int) -> None:
        self.store = TransitStore(transit, reply_limit)
        self.state = _State(NoOpFederationManager(), self.store)
        self.run_id = self._start_run()

    def _start_run(self) -> int:
        """One run for the life of this process; a run without a FAB: sites bring their own code."""
        run_id = self.state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        self.task_id = self.state.get_run_info(run_ids=[run_id])[0].primary_task_id or 0
        self.state.claim_task(self.task_id)
        self.state.activate_task(self.task_id)
        # Flower's Message() reads who speaks from here.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, self.task_id, SUPERLINK_NODE_ID
        return run_id

    def beat(self) -> None:
        """Keep the run alive; Flower ends one whose task is silent for a minute."""
        self.state.acknowledge_task_heartbeat(self.task_id)

    # who is there

    def enrol(self, sites: Iterable[Site]) -> None:
        """Make the link state agree with the ledger: register active sites, cut off revoked ones."""
        for site in sites:
            key = _normal_pem(site.node_key)
            node = self.state.get_node_id_by_public_key(key)
            if site.state == "active" and node is None:
                self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 30, name=site.name)
            elif site.state != "active" and node is not None:
                # delete_node compares with online_until, which a node that never connected does not have.
                self.state.nodes[node].online_until = self.state.nodes[node].online_until or time.time()
                self.state.delete_node(NOOP_FLWR_AID, node)
                note(logger, "site cut off", site=site.name)

    def knows(self, pem: bytes) -> bool:
        return self.state.get_node_id_by_public_key(pem) is not None

    def get_nodes(self) -> Iterable[NodeInfo]:
        return list(self.state.get_node_info(statuses=[NodeStatus.ONLINE]))

    def get_node_ids(self) -> Iterable[int]:
        return [node.node_id for node in self.get_nodes()]

    # messages

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Store requests for their nodes; returns one message id each, "" where the node is gone."""
        with no_object_id_recompute():
            return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        """Objects first, then the message: a site that sees it finds all of it."""
        message.metadata.__dict__.update({"_run_id": self.run_id, "_src_node_id": SUPERLINK_NODE_ID})
        message_id = message.object_id
        message.metadata.__dict__["_message_id"] = message_id
        self.store.trusted.add(message_id)
        session = self.state.start_session(self.run_id)
        missing = set(self.state.preregister_object_tree(get_object_tree(message), session))
        for name, item in get_all_nested_objects(message).items():
            if name in missing:
                self.state.store_object(self.run_id, session, name, item.deflate())
        if not self.store.complete(message_id):  # a full disk: the site is asked later
            self.store.delete(message_id)
            return ""
        if self.state.store_message_ins(remove_content_from_message(message)) is None:
            self.store.delete(message_id)
            return ""
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are complete, and an error for each message that will not be answered any more."""
        found = []
        for message_id in message_ids:
            reply_id = self.state.message_ins_id_to_message_res_id.get(message_id)
            if reply_id is None:
                found += self._lost(message_id)
            elif reply_id in self.store.refused:
                found.append(self._failed(message_id, reply_id, self.store.refused[reply_id], ErrorCode.UNKNOWN))
            elif self.store.complete(reply_id):
                found.append(self._read(message_id, reply_id))
            elif self.store.silent_for(reply_id) > STALLED_SECONDS:
                found.append(self._failed(message_id, reply_id, "the upload stalled", ErrorCode.MESSAGE_UNAVAILABLE))
        return found

    def _lost(self, message_id: str) -> list[Message]:
        """Flower's own errors: the node is gone, the message expired."""
        found = list(self.state.get_message_res({message_id}, self.run_id))
        for message in found:
            if not message.has_error():  # the reply came between two looks: next time
                self.state.message_res_store[message.metadata.message_id].metadata.delivered_at = ""
                return []
            self._forget(message_id, message.metadata.message_id)
        return found

    def _read(self, message_id: str, reply_id: str) -> Message:
        received = self.store.spent.get(reply_id, 0)
        try:
            reply = inflate_object_from_contents(reply_id, self.store.reply(reply_id))
            if not isinstance(reply, Message):
                raise TypeError(f"a {type(reply).__name__}, not a message")
        except Exception as error:  # whatever a hostile tree may raise
            return self._failed(message_id, reply_id, f"not a message: {error}", ErrorCode.UNKNOWN)
        reply.metadata.__dict__.update({"_message_id": reply_id, "_reply_to_message_id": message_id})
        self._forget(message_id, reply_id)
        note(logger, "reply received", level=logging.DEBUG, bytes=received)
        return reply

    def _failed(self, message_id: str, reply_id: str, why: str, code: int) -> Message:
        self._forget(message_id, reply_id)
        ours = SUPERLINK_NODE_ID
        metadata = Metadata(self.run_id, "", ours, ours, message_id, "", time.time(), 1, "system")
        return make_message(metadata, error=Error(code, why))

    def _forget(self, message_id: str, reply_id: str) -> None:
        self.state.delete_messages({message_id})
        self.store.delete(reply_id)
        self.store.delete(message_id)

    def withdraw(self, message_ids: Iterable[str]) -> None:
        """Requests whose answer is not wanted any more."""
        for message_id in message_ids:
            reply_id = self.state.message_ins_id_to_message_res_id.get(message_id, "")
            self._forget(message_id, reply_id)

    # Flower's abstract Grid asks for these three too; the round loop sets its run once, makes its messages itself
    # and never waits for all of them, so a call of one is a bug.

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        return self.state.get_run_info(run_ids=[self.run_id])[0]

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError


def _normal_pem(pem: str) -> bytes:
    """The same key as Flower writes it, so that equal keys are equal bytes."""
    return load_pem_public_key(pem.encode()).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class _Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a limit on the time that headers may take, of the first request and of any other."""

    waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        """Start the clock where no request is being served, stop it where one is."""
        if self.cycle is not None and not self.cycle.response_complete:
            if self.waiting:
                self.waiting.cancel()
            self.waiting = None
        elif self.waiting is None:
            self.waiting = self.loop.call_later(HEADER_SECONDS, self._hurry)

    def _hurry(self) -> None:
        self.waiting = None
        idle = self.timeout_keep_alive_task is not None  # between two requests: uvicorn's own clock runs
        if (self.cycle is None or self.cycle.response_complete) and not idle and not self.transport.is_closing():
            self.transport.abort()  # close() would wait for the caller's goodbye


class Gateway:
    """Serves the fleet API over TLS from a thread: `with Gateway(...) as gateway:`, then use `gateway.link`."""

    def __init__(
        self,
        link: Link,
        settings: NetworkSettings,
        certificate: Path,
        key: Path,
        on_refused: Callable[[int, str, str], None] = lambda status, why, client: None,
    ) -> None:
        self.link, self.settings = link, settings
        self.socket = _listen(settings.host, settings.port)
        self.port: int = self.socket.getsockname()[1]
        porch = Porch(
            cast(App, _fleet_app(link)), link.knows, int(settings.body_mib * 2**20), settings.body_seconds, on_refused
        )
        config = uvicorn.Config(
            porch,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            limit_concurrency=settings.connections,
            ssl_certfile=str(certificate),
            ssl_keyfile=str(key),
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), name="gateway", daemon=True)
        self.stopped = threading.Event()

    def __enter__(self) -> Gateway:
        for name in ("uvicorn", "flwr"):  # Flower sets its own level when it is imported
            logging.getLogger(name).setLevel("ERROR")
        self.thread.start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        while not self.server.started:
            if not self.thread.is_alive():
                raise NetworkError(f"port {self.port}", "the TLS server did not start", "check certificate and key")
            time.sleep(0.02)
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self.server.should_exit = True
        self.thread.join(5)
        self.socket.close()

    def _beat(self) -> None:
        while not self.stopped.wait(BEAT_SECONDS):
            self.link.beat()


def _fleet_app(link: Link) -> FastAPI:
    app = FastAPI(
        openapi_url=None,
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
            Middleware(ProtobufTranslationMiddleware),
            Middleware(NodeAuthMiddleware),
        ],
    )
    app.state.enable_supernode_auth = True
    app.state.linkstate_factory = _Factory(link.state)
    app.include_router(fleet_router)
    return app


class _Factory:
    """What Flower's routes ask for their link state."""

    def __init__(self, state: InMemoryLinkState) -> None:
        self._state = state

    def state(self) -> InMemoryLinkState:
        return self._state


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(256)
    except OSError as error:
        found.close()
        raise NetworkError(
            f"address {host}:{port}", error.strerror or str(error), "set network.port to a free one"
        ) from None
    return found


__all__ = ["Gateway", "Link", "RecordDict"]
