"""Node authentication on the public port: whose calls are served, how large and how slow they may be.

Answered here, before a byte of Flower's code runs: paths other than the fleet API's nine (404), keys that are not
enrolled or do not prove themselves (401), bodies that are too large (413) or too slow (408). Everything else is read
whole, at most a few MiB, and handed on.
"""

from __future__ import annotations

import asyncio
import binascii
import json
from base64 import b64decode
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from usfmae.core.flower_objects import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, FleetCall

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CALLS = frozenset(call.path for call in FleetCall)
HEALTH = "/healthz"
CALLER: ContextVar[bytes] = ContextVar("caller", default=b"")  # public key of the site whose call is being served
EARLY, LATE = -5.0, 305.0  # seconds a signed time may differ from ours; the fleet API's own window


class CallRefused(Exception):  # noqa: N818 - an answer, not an error
    """A request that goes no further."""

    def __init__(self, status: int, why: str, expected: bool = False) -> None:
        super().__init__(why)
        self.status, self.why = status, why
        self.expected = expected  # part of normal life: not worth an alarm


@dataclass(frozen=True)
class BodyLimits:
    """What one request may hold, and how long it may take to arrive."""

    size: int  # bytes
    seconds: float


class NodeAuth:
    """An ASGI application around another, which may raise Refused as well, before it answers.

    `enrolled` says whether a public key (PEM) belongs to an active site; `on_proved` is called for each connection on which
    a call has proved one, and says whether it is still there.
    """

    def __init__(
        self,
        inner: App,
        enrolled: Callable[[bytes], bool],
        limits: BodyLimits,
        on_refused: Callable[[int, str, str], None] = lambda status, why, client: None,
        on_proved: Callable[[tuple[str, int], bytes], bool] = lambda client, key: True,
    ) -> None:
        self.inner, self.enrolled, self.on_refused, self.on_proved = inner, enrolled, on_refused, on_proved
        self.limits = limits
        self.proved: dict[bytes, tuple[str, bytes]] = {}  # key -> the last time it signed, and the signature

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "GET" and scope["path"] == HEALTH:
            await _answer(send, 200, {"status": "ok"})
            return
        try:
            body = await self._admit(scope, receive)
            await self.inner(scope, _once(body, receive), send)
        except CallRefused as refusal:
            if not refusal.expected:
                self.on_refused(refusal.status, refusal.why, (scope.get("client") or ("?",))[0])
            await _answer(send, refusal.status, {"detail": refusal.why})

    async def _admit(self, scope: Scope, receive: Receive) -> bytes:
        # raw_path as well: an encoded slash or dot must not turn into an allowed path later on.
        if scope["path"] not in CALLS or scope.get("raw_path", b"").split(b"?")[0].decode("latin-1") not in CALLS:
            raise CallRefused(404, "not part of the fleet API")
        if scope["method"] != "POST":
            raise CallRefused(405, "POST only")
        headers = {name.lower(): value for name, value in scope["headers"]}
        key = self._key_of(headers)
        CALLER.set(key)
        if scope.get("client") and not self.on_proved(tuple(scope["client"]), key):
            raise CallRefused(429, "closed before its first call was read")
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.limits.size:
            raise CallRefused(413, f"a request holds at most {self.limits.size} bytes")
        try:
            return await asyncio.wait_for(self._body(receive), self.limits.seconds)
        except TimeoutError:
            raise CallRefused(408, f"the request took longer than {self.limits.seconds:.0f} s to arrive") from None

    def _key_of(self, headers: dict[bytes, bytes]) -> bytes:
        """The caller's key: it signs the time with an enrolled one, as Flower's node authentication asks it to."""
        try:
            pem = b64decode(headers[PUBLIC_KEY_HEADER.encode()], validate=True)
            signature = b64decode(headers[SIGNATURE_HEADER.encode()], validate=True)
            stamp = headers[TIMESTAMP_HEADER.encode()].decode("ascii")
            age = (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()
        except (KeyError, ValueError, TypeError, binascii.Error):
            raise CallRefused(401, "no node authentication") from None
        if not self.enrolled(pem):
            raise CallRefused(401, "this key is not enrolled, or was revoked")
        if not EARLY < age < LATE:
            raise CallRefused(401, f"clocks differ by {abs(age):.0f} s: set the site's clock")
        if self.proved.get(pem) != (stamp, signature):  # a site may sign once for the calls of half a minute
            _verify(pem, stamp, signature)
            self.proved[pem] = stamp, signature
        return pem

    async def _body(self, receive: Receive) -> bytes:
        parts, size, more = [], 0, True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise CallRefused(499, "the caller hung up")
            parts.append(event.get("body", b""))
            size += len(parts[-1])
            more = event.get("more_body", False)
            if size > self.limits.size:
                raise CallRefused(413, f"a request holds at most {self.limits.size} bytes")
        return b"".join(parts)


def _verify(pem: bytes, stamp: str, signature: bytes) -> None:
    try:
        key = load_pem_public_key(pem)
        if not isinstance(key, EllipticCurvePublicKey):
            raise CallRefused(401, "no ECDSA key")
        key.verify(signature, stamp.encode(), ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        raise CallRefused(401, "the signature does not match the key") from None


def _once(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the whole body, then what the server says (a disconnect)."""
    given = False

    async def replay() -> dict[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _answer(send: Send, status: int, value: dict[str, str]) -> None:
    body = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status if status != 499 else 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
