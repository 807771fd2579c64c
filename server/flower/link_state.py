"""Flower's link state in this process: nodes, requests and replies. Nothing here blocks.

After a restart the state is new and empty: sites
are registered again from the ledger under new node ids, and the round loop asks again; a site answers from its disk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from flwr.app import ConfigRecord, Error, Message, RecordDict

from usfmae.core import flower_objects, keys
from usfmae.core.federated.enrolment import EnrolledSite, SiteState
from usfmae.core.log import note, printable
from usfmae.server.flower.node_auth import CALLER, CallRefused
from usfmae.server.flower.object_store import DiskObjectStore, Offer
from usfmae.server.flower.pinned import (
    NOOP_ACCOUNT_NAME,
    NOOP_FEDERATION_ID,
    NOOP_FLWR_AID,
    SUPERLINK_NODE_ID,
    ErrorCode,
    InMemoryLinkState,
    NodeStatus,
    NoOpFederationManager,
    ObjectTree,
    TaskIdentity,
    TaskType,
    wire,
)

logger = logging.getLogger(__name__)

# Errors that say something about the connection or the node, not about a site's honesty.
PASSING = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
)
STALLED_SECONDS = 180.0  # an upload without a new piece for this long is given up and asked for again


Record = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class Reply:
    """A reply whose every object is here, or why there is none."""

    message: str  # the request's message id
    records: Mapping[str, str]  # name -> object id
    fetch: flower_objects.Fetch  # of this reply's objects alone
    error: str = ""
    hostile: bool = False  # the error says something about the sender, not about the connection


class State(InMemoryLinkState):
    """Flower's link state takes a site's word for who it is and what its reply is called; this one checks."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.answers: dict[str, str] = {}  # request -> root of its reply, also when Flower has let both expire

    def store_message_and_object_tree(
        self, message: Message, object_tree: ObjectTree, session_id: str
    ) -> tuple[bool, list[str]]:
        root, caller = object_tree.object_id, CALLER.get()
        if caller and self.get_node_id_by_public_key(caller) != message.metadata.src_node_id:
            raise CallRefused(403, "a reply in another site's place")
        taken: bool = False
        missing: list[str] = []
        if root == message.metadata.message_id and root not in cast(DiskObjectStore, self.object_store).offers:
            taken, missing = super().store_message_and_object_tree(message, object_tree, session_id)
        if taken:
            self.answers[message.metadata.reply_to_message_id] = root
        if not missing:  # nothing will come in this session: Flower would remember it for ever
            self._cleanup_push_session(session_id, cleanup_messages=False)
        return taken, missing

    def confirmable(self, root: str, key: bytes) -> bool:
        """Whether the site with this key may say that it holds message `root` whole.

        True as well for a request that is gone: its round is over, and there is nothing to free.
        """
        message = self.message_ins_store.get(root)
        if message is not None:
            return bool(message.metadata.dst_node_id == self.get_node_id_by_public_key(key))
        store = cast(DiskObjectStore, self.object_store)
        return root not in store.replies and root not in store.offers

    def end_session(self, root: str) -> None:
        """No more of this reply is wanted."""
        self._cleanup_push_session(self._object_push_session_by_root.get(root, ""), cleanup_messages=False)


class LinkState:
    def __init__(self, transit: Path, reply_limit: int) -> None:
        self.store = DiskObjectStore(transit, reply_limit)
        self.state = State(NoOpFederationManager(), self.store)
        self.run_id = self._start_run()
        self.on_request: Callable[[bytes], None] = lambda key: (
            None
        )  # called with the key of the node a new request is for

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

    # nodes

    def enrol(self, sites: Iterable[EnrolledSite]) -> None:
        """Make the link state agree with the ledger: register active sites, cut off revoked ones."""
        for site in sites:
            key = normal_pem(site.node_key)
            node = self.state.get_node_id_by_public_key(key)
            if site.state == SiteState.ACTIVE and node is None:
                self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 30, name=site.name)
            elif site.state != SiteState.ACTIVE and node is not None:
                # delete_node compares with online_until, which a node that never connected does not have.
                self.state.nodes[node].online_until = self.state.nodes[node].online_until or time.time()
                self.state.delete_node(NOOP_FLWR_AID, node)
                note(logger, "site cut off", site=site.name)

    def knows(self, pem: bytes) -> bool:
        return self.state.get_node_id_by_public_key(pem) is not None

    def online(self) -> dict[bytes, int]:
        """Node ids by public key, of the nodes that are there now."""
        return {bytes(n.public_key): n.node_id for n in self.state.get_node_info(statuses=[NodeStatus.ONLINE])}

    def waits(self, pem: bytes) -> bool:
        """Whether a request waits to be fetched by the node with this key."""
        node = self.state.get_node_id_by_public_key(pem)
        waiting = list(self.state.message_ins_store.values())
        return any(m.metadata.dst_node_id == node and not m.metadata.delivered_at for m in waiting)

    # messages

    def send(
        self, node: int, records: Mapping[str, Record], arrays: Mapping[str, flower_objects.Arrays], ttl: float
    ) -> str:
        """Hold a request ready for its node; returns its message id, or "" where the node is gone."""
        message = Message(RecordDict(), node, "train", ttl=ttl)
        message.metadata.__dict__.update({"_run_id": self.run_id, "_src_node_id": SUPERLINK_NODE_ID})
        config = {name: _body(ConfigRecord({**record})) for name, record in records.items()}
        made = flower_objects.parcel(_body(message), config, arrays)
        message.metadata.__dict__["_message_id"] = made.tree.id
        self.store.offer(Offer(_tree(made.tree), made.make))  # before the message: who sees it finds all of it
        if self.state.store_message_ins(message) is None:
            self.store.delete(made.tree.id)
            return ""
        self.on_request(bytes(self.state.nodes[node].public_key))
        return made.tree.id

    def replies(self, message_ids: Iterable[str]) -> Iterator[Reply]:
        """Replies that are complete, and an error for each request that will not be answered any more.

        A reply's objects are gone when the next one is asked for.
        """
        for message_id in message_ids:
            reply_id = self.state.message_ins_id_to_message_res_id.get(message_id)
            reply = self._complete(message_id, reply_id) if reply_id else self._lost(message_id)
            if reply is not None:
                try:
                    yield reply
                finally:
                    self.forget(message_id)

    def _complete(self, message_id: str, reply_id: str) -> Reply | None:
        if reply_id in self.store.refused:
            return _without(message_id, Error(ErrorCode.UNKNOWN, self.store.refused[reply_id]))
        if self.store.complete(reply_id):
            return self._read(message_id, reply_id)
        if self.store.silent_for(reply_id) > STALLED_SECONDS:
            return _without(message_id, Error(ErrorCode.MESSAGE_UNAVAILABLE, "the upload stalled"))
        return None

    def _read(self, message_id: str, reply_id: str) -> Reply:
        fetch = self.store.fetcher(reply_id)
        try:
            message = wire.Message.FromString(bytes(flower_objects.expect(fetch(reply_id), "Message").body))
            if message.HasField("error"):
                return _without(message_id, Error(message.error.code, message.error.reason))
            return Reply(message_id, flower_objects.records(reply_id, fetch), fetch)
        except Exception as error:  # whatever a hostile tree may raise
            return _without(message_id, Error(ErrorCode.UNKNOWN, f"not a message: {error}"))

    def _lost(self, message_id: str) -> Reply | None:
        """Flower's own errors: the node is gone, the message expired."""
        for message in self.state.get_message_res({message_id}, self.run_id):
            if message.has_error():
                self.store.delete(message.metadata.message_id)  # Flower wrote its error like a reply
                return _without(message_id, message.error)
            # The reply came between two looks: next time.
            self.state.message_res_store[message.metadata.message_id].metadata.delivered_at = ""
        return None

    def forget(self, message_id: str) -> None:
        """A request and its reply, as far as there is one, with all their objects."""
        reply_id = self.state.answers.pop(message_id, "")
        self.state.end_session(reply_id)
        self.state.delete_messages({message_id})
        self.store.delete(reply_id)
        self.store.delete(message_id)


def config_record(content: bytes) -> dict[str, Any]:
    """What a ConfigRecord object holds. ValueError, or an error of protobuf's, where it is none."""
    return dict(ConfigRecord.inflate(content))


def _body(item: Message | ConfigRecord) -> bytes:
    return bytes(flower_objects.split(item.deflate()).body)


def _without(message_id: str, error: Error) -> Reply:
    nothing: dict[str, bytes] = {}
    return Reply(message_id, {}, nothing.__getitem__, printable(str(error.reason)), error.code not in PASSING)


@lru_cache(maxsize=4096)
def normal_pem(pem: str) -> bytes:
    """The same key as Flower writes it, so that equal keys are equal bytes."""
    return keys.normal_pem(pem).encode()


def _tree(tree: flower_objects.Tree) -> ObjectTree:
    return ObjectTree(object_id=tree.id, children=[_tree(child) for child in tree.children])
