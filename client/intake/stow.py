"""STOW-RS: a gateway inside the hospital pushes instances over HTTP, the spool keeps them (DICOM PS3.18 section 10.5).

Off unless `stow.port` is set. Whoever pushes needs the token of `SITE/keys/stow.token`. Instances stream to the spool;
of each only the file meta information is read, for the two UIDs that the answer repeats. "Stored" is answered once the
files are on disk.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path

import uvicorn
from pydicom.uid import UID
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from usfmae.client.intake.multipart import Parts, boundary_of
from usfmae.client.intake.spool import Incoming, Spool, TooLargeError
from usfmae.core import log
from usfmae.core.config.sources import StowSettings
from usfmae.core.errors import ConfigError, ResourceError
from usfmae.core.keys import read_secret, write_secret
from usfmae.core.read.dicom import ROOT, ULTRASOUND
from usfmae.core.web import server_thread

logger = logging.getLogger(__name__)

MOST_PARTS = 100_000  # of one request
MOST_LOGGED = 100  # instances of one request whose refusal gets a line of its own in the log
HEAD = 4096  # bytes at the beginning of an instance in which its class and name have to stand
SOP_CLASS, SOP_INSTANCE = 0x0002, 0x0003  # of group 0002
LONG = {b"OB", b"UN"}  # value representations of group 0002 with a length of four bytes
# Failure reasons (PS3.18 table 10.5.3-2, PS3.3 section C.14.1.1)
OUT_OF_RESOURCES, NOT_SUPPORTED, CANNOT_UNDERSTAND = 0xA700, 0x0122, 0xC000


@dataclass
class PushedInstance:
    """One part of a request on its way to the spool. What is refused is read and dropped."""

    spool: Spool
    classes: frozenset[str]
    is_logged: bool = True  # where it is refused
    head: bytearray = field(default_factory=bytearray)
    incoming: Incoming | None = None
    sop_class: str = ""
    sop_instance: str = ""
    reason: int = 0  # why it failed
    why: str = ""
    is_new: bool = False

    def write(self, content: bytes) -> None:
        if self.reason:
            return
        try:
            if self.incoming is None:
                self.head += content
                if len(self.head) < HEAD:
                    return
                content = self._begin()
            if self.incoming is not None:
                self.incoming.write(content)
        except Exception as error:
            self.refuse(error)

    def _begin(self) -> bytes:
        """Opens the file once it is known to be one of ours; the bytes that go into it first."""
        self.sop_class, self.sop_instance = file_meta(bytes(self.head))
        if self.sop_class not in self.classes:
            self.reason, self.why = NOT_SUPPORTED, "SOP class not accepted"
            if self.is_logged:
                log.note(logger, "SOP class not accepted", sop_class=self.sop_class, name=UID(self.sop_class).name)
            self.head.clear()
            return b""
        self.incoming = self.spool.incoming()
        first = bytes(self.head)
        self.head.clear()
        return first

    def end(self) -> None:
        """All of it has come: it gets its name."""
        try:
            if self.incoming is None and not self.reason:
                first = self._begin()
                if self.incoming is not None:
                    self.incoming.write(first)
            if self.incoming is not None:
                self.is_new = self.incoming.keep()
                self.incoming = None
        except Exception as error:
            self.refuse(error)

    def refuse(self, error: Exception) -> None:
        self.discard()
        no_dicom = isinstance(error, ValueError | TooLargeError)
        self.reason = CANNOT_UNDERSTAND if no_dicom else OUT_OF_RESOURCES
        self.why = error.why if isinstance(error, ResourceError) else f"{type(error).__name__}: {error}"[:120]
        self.head.clear()
        if self.is_logged:
            log.note(logger, "instance refused", logging.WARNING, why=self.why)

    def discard(self) -> None:
        if self.incoming is not None:
            self.incoming.discard()
        self.incoming = None

    def as_json(self) -> dict[str, object]:
        """An item of the Referenced or of the Failed SOP Sequence."""
        item: dict[str, object] = {"00081150": _uid(self.sop_class), "00081155": _uid(self.sop_instance)}
        if self.reason:
            item["00081197"] = {"vr": "US", "Value": [self.reason]}
        return item


def file_meta(head: bytes) -> tuple[str, str]:
    """(SOP class, SOP instance) of the file meta information, which is explicit little endian (PS3.10 section 7.1).

    ValueError for what does not begin as a DICOM file.
    """
    if head[128:132] != b"DICM":
        raise ValueError("not a DICOM file")
    elements: dict[int, str] = {}
    at = 132
    while at + 12 <= len(head) and not {SOP_CLASS, SOP_INSTANCE} <= elements.keys():
        group, element, kind = struct.unpack_from("<HH2s", head, at)
        is_long = kind in LONG
        (length,) = struct.unpack_from("<I" if is_long else "<H", head, at + 8 if is_long else at + 6)
        at += 12 if is_long else 8
        if group != 2 or at + length > len(head):
            break
        if element in (SOP_CLASS, SOP_INSTANCE):
            elements[element] = head[at : at + length].rstrip(b"\0 ").decode("ascii", "replace")
        at += length
    uids = elements.get(SOP_CLASS, ""), elements.get(SOP_INSTANCE, "")
    if not all(UID(uid).is_valid for uid in uids):
        raise ValueError("no SOP class and instance in the file meta information")
    return uids


@dataclass
class StowService:
    """What a POST to /studies does."""

    spool: Spool
    token: str
    settings: StowSettings
    count: Callable[[str], None] = lambda what: None

    @property
    def classes(self) -> frozenset[str]:
        return frozenset((*(ROOT + below for below in ULTRASOUND), *self.settings.sop_classes))

    async def store(self, request: Request) -> Response:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
            self.count("rejected")
            return PlainTextResponse("a bearer token is needed", 401, {"WWW-Authenticate": "Bearer"})
        try:
            kind = request.headers.get("content-type", "")
            if not _is_form_of_dicom(kind):
                raise ValueError("not multipart/related of application/dicom")
            boundary = boundary_of(kind)
            self.spool.check_room()
        except ValueError as error:
            return PlainTextResponse(str(error), 415)
        except ResourceError as error:
            return PlainTextResponse(error.why, 503, {"Retry-After": "600"})
        return await self._received(request, boundary)

    async def _received(self, request: Request, boundary: bytes) -> Response:
        instances: list[PushedInstance] = []
        current: list[PushedInstance] = []
        refused = [0]

        def part() -> PushedInstance:
            if not current:
                if len(instances) >= MOST_PARTS:
                    raise ValueError(f"more than {MOST_PARTS} parts")
                current.append(PushedInstance(self.spool, self.classes, refused[0] < MOST_LOGGED))
            return current[0]

        def write(content: bytes) -> None:
            part().write(content)

        def ended() -> None:
            part().end()  # also where it was empty: it is one that failed
            instances.append(current.pop())
            refused[0] += instances[-1].reason > 0

        parts = Parts(boundary, write, ended)
        try:
            stream = request.stream()
            while content := await asyncio.wait_for(anext(stream, b""), self.settings.idle_seconds):
                await run_in_threadpool(parts.feed, content)
            parts.end()
        except Exception as error:  # what came whole stays; the gateway sends the request again
            why = f"{type(error).__name__}: {error}"[:120]
            log.note(logger, "push ended early", logging.WARNING, why=why)
            self._count(instances)
            is_theirs = isinstance(error, ValueError | TimeoutError | ClientDisconnect)
            return PlainTextResponse(why, 400 if is_theirs else 500)
        finally:
            for left in current:
                left.discard()
        return await run_in_threadpool(self._answer, instances)

    def _count(self, instances: list[PushedInstance]) -> None:
        for one in instances:
            self.count("refused" if one.reason else "stored" if one.is_new else "repeated")

    def _answer(self, instances: list[PushedInstance]) -> Response:
        """What was stored and what was not, once it is on disk."""
        try:
            self.spool.settle()
        except ResourceError as error:
            return PlainTextResponse(error.why, 503, {"Retry-After": "600"})
        self._count(instances)
        if not instances:
            return PlainTextResponse("no instances", 400)
        stored, failed = [one for one in instances if not one.reason], [one for one in instances if one.reason]
        answer: dict[str, object] = {}
        if stored:
            answer["00081199"] = {"vr": "SQ", "Value": [one.as_json() for one in stored]}
        if failed:
            answer["00081198"] = {"vr": "SQ", "Value": [one.as_json() for one in failed]}
        status = 200 if not failed else 202 if stored else 409
        return Response(json.dumps(answer), status, media_type="application/dicom+json")


def _is_form_of_dicom(content_type: str) -> bool:
    """Whether it is multipart/related of DICOM files: not of their metadata as JSON or XML, which is another request."""
    header = Message()
    header["content-type"] = content_type
    type_ = header.get_param("type")
    return header.get_content_type() == "multipart/related" and str(type_).lower() == "application/dicom"


def _uid(value: str) -> dict[str, object]:
    return {"vr": "UI", "Value": [value]} if value else {"vr": "UI"}


def token(keys: Path) -> str:
    """The token in `stow.token`, made (mode 0600) where there is none. ConfigError where others may read it."""
    file = keys / "stow.token"
    if not file.exists():
        write_secret(file, secrets.token_urlsafe(24).encode() + b"\n")
    return read_secret(file).decode().strip()


def application(service: StowService) -> Starlette:
    routes = [Route(path, service.store, methods=["POST"]) for path in ("/studies", "/studies/{study}")]
    return Starlette(routes=routes)


def serving(service: StowService) -> AbstractContextManager[int]:
    """The service in a thread; the port it listens on. ResourceError where it is taken, ConfigError without a pair."""
    settings = service.settings
    if (settings.certificate is None) != (settings.key is None):
        raise ConfigError("stow.certificate", "certificate and key go together", "give both or neither")
    config = uvicorn.Config(
        application(service),
        http=server_thread.page_protocol(H11Protocol),
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
        **server_thread.OPTIONS,
    )
    try:
        if settings.certificate:
            config.load()
    except OSError as error:
        raise ConfigError("stow.certificate", str(error), "give PEM files this account may read") from None
    return server_thread.serving(uvicorn.Server(config), settings.host, settings.port, "stow")
