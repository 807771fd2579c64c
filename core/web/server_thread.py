"""Runs a web server in a thread beside whatever else the process does. Which server it is, the two sides know."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Protocol

from prometheus_client import CollectorRegistry, start_http_server

from usfmae.core.errors import ResourceError

MOST_CONNECTIONS = 64  # of a page; where there are more, the one that has been idle longest is closed

# What both sides give uvicorn: no access log (it would hold addresses), no patience with slow or huge requests.
OPTIONS: dict[str, Any] = {
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "lifespan": "off",
    "ws": "none",
    "h11_max_incomplete_event_size": 16384,
    "timeout_keep_alive": 15,
    "timeout_graceful_shutdown": 2,
}


class HeaderTimeout:
    """Mixed into uvicorn's H11Protocol: headers have a limited time, of the first request and of any other."""

    header_seconds: ClassVar[float] = 20.0
    waiting: asyncio.TimerHandle | None = None
    # of uvicorn's protocol
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    cycle: Any
    timeout_keep_alive_task: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)  # type: ignore[misc]
        self._watch()

    @property
    def serving(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def on_slow(self) -> None:
        """Hears of a connection that is closed because its headers took too long."""

    def _watch(self) -> None:
        """Start the clock where no request is being served, stop it where one is."""
        if self.serving:
            if self.waiting:
                self.waiting.cancel()
            self.waiting = None
        elif self.waiting is None:
            self.waiting = self.loop.call_later(self.header_seconds, self._close_slow)

    def _close_slow(self) -> None:
        self.waiting = None
        idle = self.timeout_keep_alive_task is not None  # between two requests: uvicorn's own clock runs
        if not self.serving and not idle and not self.transport.is_closing():
            self.on_slow()
            self.transport.abort()  # close() would wait for the caller's goodbye


class FewConnections(HeaderTimeout):
    """A page's connections: silent ones never keep a person out."""

    header_seconds = 10.0
    open: ClassVar[dict[FewConnections, None]]  # the oldest first; a class of its own for each server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.open[self] = None
        if len(self.open) > MOST_CONNECTIONS:
            oldest = next((one for one in self.open if not one.serving), self)
            self.open.pop(oldest)
            oldest.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)  # type: ignore[misc]
        self.open.pop(self, None)


def page_protocol(base: type[Any]) -> type[Any]:
    """uvicorn's HTTP protocol class, with the limits of a page."""
    return type("PageProtocol", (FewConnections, base), {"open": {}})


class Server(Protocol):
    """As uvicorn's: serves these sockets until `should_exit`."""

    should_exit: bool

    def run(self, sockets: list[socket.socket] | None = None) -> None: ...


@contextlib.contextmanager
def serving(server: Server, host: str, port: int, setting: str = "page") -> Iterator[int]:
    """The port it listens on (0 picks a free one). ResourceError where it is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ResourceError(
            f"{setting} on {host}:{port}", error.strerror or str(error), f"set {setting}.port"
        ) from None
    thread = threading.Thread(target=server.run, args=([listener],), name=setting, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(5)
        listener.close()


def serve_metrics(source: CollectorRegistry, host: str, port: int) -> tuple[Callable[[], None], int]:
    """Answer `/metrics` from a thread; returns what stops it and the port taken (0 picks a free one)."""
    try:
        server, thread = start_http_server(port, host, source)
    except OSError as error:
        raise ResourceError(f"metrics on {host}:{port}", error.strerror or str(error), "set metrics.port") from None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(5)

    return stop, int(server.server_address[1])
