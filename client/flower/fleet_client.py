"""A site on Flower's fleet API: one outbound HTTPS connection, and nothing that came over it is ever run.

What this relies on that Flower does not publish: the types in pinned.py, the calls, the headers and the object format
in core/flower_objects.py, and the signature over a timestamp. It never calls `get-fab` or `get-run`: code that the
aggregator distributes stays where it is.
"""

from __future__ import annotations

import base64
import contextlib
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Proto

from usfmae.client.flower.messages import ReplyMessage, RequestMessage
from usfmae.client.flower.pinned import Node, beat, fleet, records, wire
from usfmae.client.flower.proxy import proxy_for
from usfmae.client.flower.transport_errors import GoneError, UnknownKeyError, UnreachableError, explained, refused
from usfmae.client.site import Site
from usfmae.core import flower_objects
from usfmae.core.errors import ConfigError
from usfmae.core.flower_objects import HOLD_HEADER, PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, FleetCall
from usfmae.core.keys import public_pem

MEDIA_TYPE = "application/protobuf"
SIGNED_FOR = 20.0  # seconds for which one signature of the time serves; the aggregator takes it for 300

R = TypeVar("R", bound=Proto)


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """TLS that trusts the given CA alone, or the system's where none is given."""
    try:
        return ssl.create_default_context(cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"CA {ca}", f"cannot be used: {error}", "put the coordinator's ca.pem there") from None


@dataclass(frozen=True)
class AggregatorAddress:
    """Where the aggregator is and how this site reaches it."""

    server: str  # https://HOST:PORT
    ca: Path | None = None  # None: the system's authorities
    proxy: str | None = None  # None: as the environment says


def address_of(site: Site) -> AggregatorAddress:
    return AggregatorAddress(site.settings.server, site.ca_file, site.settings.proxy)


class FleetClient:
    """Calls of one node. Not thread-safe but for `heartbeat`, which httpx allows during another call."""

    def __init__(
        self,
        address: AggregatorAddress,
        key: EllipticCurvePrivateKey,
        timeout: float = 60,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.server, self.key, self.proxy = address.server, key, proxy_for(address.server, address.proxy)
        self.public = public_pem(key).encode()
        self.node_id = 0
        self.clock_offset = 0.0  # the server's clock minus ours, in seconds, as of the last answer
        self.proof: dict[str, str] = {}  # headers that prove the key
        self.proved = -SIGNED_FOR  # monotonic time at which they were made
        self.http = httpx.Client(
            base_url=address.server,
            verify=tls_context(address.ca),
            proxy=self.proxy.url or None,
            trust_env=False,  # `proxy_for` has asked the environment
            transport=transport,
            timeout=httpx.Timeout(timeout, connect=15.0),
            follow_redirects=False,
        )

    def close(self) -> None:
        self.http.close()

    # --- calls

    def activate(self, interval: float) -> int:
        """Come online. UnknownKeyError where the key is not enrolled, or while an earlier activation has not lapsed."""
        request = fleet.ActivateNodeRequest(public_key=self.public, heartbeat_interval=interval)
        self.node_id = int(self._call(FleetCall.ACTIVATE, request, fleet.ActivateNodeResponse).node_id)
        return self.node_id

    def deactivate(self) -> None:
        self._call(
            FleetCall.DEACTIVATE, fleet.DeactivateNodeRequest(node_id=self.node_id), fleet.DeactivateNodeResponse
        )

    def heartbeat(self, interval: float) -> None:
        request = beat.SendNodeHeartbeatRequest(node=self._node(), heartbeat_interval=interval)
        if not self._call(FleetCall.HEARTBEAT, request, beat.SendNodeHeartbeatResponse).success:
            raise UnknownKeyError(f"server {self.server}", "does not know this node any more", "coming online again")

    def pull(self, hold: float = 0.0) -> RequestMessage | None:
        """The next message for this node, or None. Each is delivered once: the caller writes it to disk at once.

        With `hold` the aggregator may wait that many whole seconds for a message before it says that there is none.
        """
        request, more = fleet.PullMessagesRequest(node=self._node()), {HOLD_HEADER: f"{int(hold)}"} if hold >= 1 else {}
        answer = self._call(FleetCall.PULL_MESSAGES, request, fleet.PullMessagesResponse, more)
        if not answer.messages_list:
            return None
        metadata = answer.messages_list[0].metadata
        return RequestMessage(metadata.SerializeToString(deterministic=True), metadata.message_id)

    def fetch(self, run: int, id_: str) -> bytes:
        """One object, its hash checked."""
        request = wire.PullObjectRequest(node=self._node(), run_id=run, object_id=id_)
        answer = self._call(FleetCall.PULL_OBJECT, request, wire.PullObjectResponse)
        if not answer.object_found:
            raise GoneError(
                f"object {id_[:12]}", "is not at the aggregator any more", "the round is over for this request"
            )
        if not answer.object_available:
            raise UnreachableError(f"object {id_[:12]}", "has not arrived at the aggregator yet", "retrying")
        content: bytes = answer.object_content
        if flower_objects.object_id(content) != id_:
            raise UnreachableError(f"object {id_[:12]}", "arrived damaged", "retrying")
        return content

    def confirm(self, request: RequestMessage) -> None:
        """Tell the aggregator that the whole message has arrived, so that it frees its memory."""
        confirmed = wire.ConfirmMessageReceivedRequest(
            node=self._node(), run_id=request.run, message_object_id=request.id
        )
        self._call(FleetCall.CONFIRM, confirmed, wire.ConfirmMessageReceivedResponse)

    def push(self, reply: ReplyMessage) -> int:
        """Send a reply, object by object; only what the aggregator does not hold yet. Returns the bytes sent."""
        message = wire.Message(metadata=reply.metadata, content=records.RecordDict())
        request = fleet.PushMessagesRequest(
            node=self._node(),
            messages_list=[message],
            message_object_trees=[_tree(reply.parcel.tree)],
            clientapp_runtime_list=[reply.seconds],
        )
        answer = self._call(FleetCall.PUSH_MESSAGES, request, fleet.PushMessagesResponse)
        if not answer.session_id:
            raise GoneError("reply", "was not taken: its request has expired", "waiting for the next round")
        sent = 0
        for id_, content in reply.parcel.contents(answer.objects_to_push):
            pushed = wire.PushObjectRequest(
                node=self._node(),
                run_id=reply.metadata.run_id,
                object_id=id_,
                object_content=content,
                session_id=answer.session_id,
            )
            if not self._call(FleetCall.PUSH_OBJECT, pushed, wire.PushObjectResponse).stored:
                raise UnreachableError("upload", "its session has lapsed at the aggregator", "sending the rest again")
            sent += len(content)
        return sent

    # --- one call

    def _node(self) -> Node:
        return Node(node_id=self.node_id)

    def _proof(self) -> dict[str, str]:
        """Headers that prove the key: the time, signed."""
        if time.monotonic() - self.proved > SIGNED_FOR:
            stamp = datetime.now(UTC).isoformat()
            signature = self.key.sign(stamp.encode(), ECDSA(SHA256()))
            self.proof = {TIMESTAMP_HEADER: stamp, SIGNATURE_HEADER: base64.b64encode(signature).decode()}
            self.proved = time.monotonic()
        return {PUBLIC_KEY_HEADER: base64.b64encode(self.public).decode(), **self.proof}

    def _call(self, call: FleetCall, request: Proto, answer: type[R], more: Mapping[str, str] | None = None) -> R:
        headers = {"content-type": MEDIA_TYPE, "accept": MEDIA_TYPE, **self._proof(), **(more or {})}
        content = request.SerializeToString(deterministic=True)
        status, body = self._post(call.path, content, headers)
        if status != 200:
            self.proved = -SIGNED_FOR
            raise refused(call, status, body, self.server, self.clock_offset)
        try:
            parsed: R = answer.FromString(body)
            return parsed
        except DecodeError:
            raise UnreachableError(
                f"server {self.server}", "answered with something else than Flower", "retrying"
            ) from None

    def _post(self, path: str, content: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        try:
            with self.http.stream("POST", path, content=content, headers=dict(headers)) as response:
                self._note_clock(response.headers.get("date"))
                body = bytearray()
                if response.headers.get("content-encoding", "identity") != "identity":
                    # Nothing is unpacked: a few bytes could become gigabytes.
                    raise UnreachableError(f"server {self.server}", "packs its answers, unasked", "retrying")
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > flower_objects.LARGEST + 1024:
                        raise UnreachableError(
                            f"server {self.server}", "sends more than any object may hold", "retrying"
                        )
                return response.status_code, bytes(body)
        except httpx.HTTPError as error:
            raise explained(error, self.server, self.proxy.source) from None

    def _note_clock(self, date: str | None) -> None:
        with contextlib.suppress(ValueError, TypeError, OverflowError):  # a proxy may have written anything there
            self.clock_offset = parsedate_to_datetime(date or "").timestamp() - time.time()


def _tree(tree: flower_objects.Tree) -> wire.ObjectTree:
    return wire.ObjectTree(object_id=tree.id, children=[_tree(child) for child in tree.children])
