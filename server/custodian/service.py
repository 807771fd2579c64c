"""The custodian's one process: a TLS port with two calls, both for messages that its coordinator has signed.

POST /message    an envelope -> the answering envelope
POST /share      the envelope that asked for a sum -> that sum, two bytes a value, as long as it lasts
"""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from usfmae.core import audit
from usfmae.core.errors import PolicyError, UsfmaeError
from usfmae.core.federated.sealed import envelope
from usfmae.core.federated.sealed.custody import Custodian
from usfmae.core.federated.sealed.envelope import Envelope, Kind
from usfmae.core.files import locked, write_atomic
from usfmae.core.log import note
from usfmae.core.web import server_thread
from usfmae.server.custodian.home import CustodianHome

logger = logging.getLogger(__name__)

LARGEST = 4 * 2**20  # bytes of a message; one of 250 sites has less than a megabyte


class TooLargeError(Exception):
    """A body that is larger than any message."""


class Service:
    """Answers one message at a time: whatever one raises costs that one."""

    def __init__(self, home: CustodianHome) -> None:
        self.home = home
        fewest = home.settings().fewest
        self.custodian = Custodian(home.keys(), home.coordinator(), home.sites, home.records(), fewest)
        self.lock = threading.Lock()

    def application(self) -> Starlette:
        routes = [Route("/message", self._message, methods=["POST"]), Route("/share", self._share, methods=["POST"])]
        return Starlette(routes=routes)

    async def _message(self, request: Request) -> Response:
        return await self._answered(request, self._answer)

    async def _share(self, request: Request) -> Response:
        return await self._answered(request, self._stream)

    async def _answered(self, request: Request, work: object) -> Response:
        try:
            ask = await _body(request)
            return await run_in_threadpool(work, ask)  # type: ignore[arg-type]
        except TooLargeError:
            return _refusal(413, "a message of the coordinator is smaller")
        except (ValueError, RecursionError):
            return _refusal(400, "not a message of a sealed round")
        except PolicyError as error:
            if self._is_coordinators(ask):  # nobody else fills the log
                audit.append(self.home.audit, "custodian", "message", "refused", why=f"{error.what} {error.why}"[:300])
            note(logger, "refused", level=logging.WARNING, reason=str(error)[:300])
            return _refusal(409, f"{error.what} {error.why}"[:600])
        except UsfmaeError as error:
            logger.error("%s", error)
            return _refusal(503, str(error)[:300])
        except Exception as error:
            logger.exception("a message could not be answered")
            return _refusal(500, type(error).__name__)

    def _is_coordinators(self, ask: Envelope) -> bool:
        try:
            envelope.read(ask, Kind(ask.get("kind", "")), self.custodian.coordinator)
        except (PolicyError, ValueError):
            return False
        return True

    def _answer(self, ask: Envelope) -> Response:
        with self.lock:
            answer = self.custodian.answer(ask)
        kind = ask["kind"]
        values = envelope.read(answer, Kind(kind).answer, self.custodian.keys.signing.public_key())
        sites = values.get("sites") if kind == Kind.SUM else None
        left_out = values.get("refused") if kind == Kind.OPEN else None
        place = values.get("place")
        audit.append(
            self.home.audit, "custodian", kind, place=place, left_out=left_out, sites=sites, share=values.get("share")
        )
        note(logger, "answered", kind=kind)
        return JSONResponse(answer)

    def _stream(self, ask: Envelope) -> Response:
        """The sum that this very message asked for before; PolicyError for any other."""
        with self.lock:
            self.custodian.answer(ask)
        place = str(envelope.read(ask, Kind.SUM, self.custodian.coordinator)["place"])
        pieces: Iterator[bytes] = self.custodian.share(place)
        return StreamingResponse(pieces, media_type="application/octet-stream")


async def _body(request: Request) -> Envelope:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > LARGEST:
            raise TooLargeError
    values = json.loads(bytes(data))
    if not isinstance(values, dict) or not all(isinstance(text, str) for text in values.values()):
        raise ValueError("no envelope")
    return values


def _refusal(status: int, why: str) -> JSONResponse:
    return JSONResponse({"error": why}, status)


def serve(home: CustodianHome) -> None:
    """Answer the coordinator until SIGTERM or Ctrl-C. PolicyError where another process holds the directory."""
    settings = home.settings()
    with locked(home.lock) as free:
        if not free:
            raise PolicyError(f"directory {home.root}", "another custodian is running here", "stop it first")
        stopped = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        options = {**server_thread.OPTIONS, "ssl_certfile": str(home.certificate), "ssl_keyfile": str(home.tls_key)}
        protocol = server_thread.page_protocol(H11Protocol)
        config = uvicorn.Config(Service(home).application(), http=protocol, **options)
        with server_thread.serving(uvicorn.Server(config), settings.host, settings.port, "custodian") as port:
            write_atomic(home.address, f"{settings.host}:{port}\n".encode())
            audit.append(home.audit, "custodian", "start", port=port, sites=len(home.sites()))
            note(logger, "serving", address=f"{settings.host}:{port}", sites=len(home.sites()))
            stopped.wait()
        home.address.unlink(missing_ok=True)
        audit.append(home.audit, "custodian", "stop")
