"""Runs a web server in a thread beside whatever else the process does. Which server it is, the two sides know."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from usfmae.core.errors import ResourceError

# What both sides give uvicorn: no access log (it would hold addresses), no patience with slow or huge requests.
OPTIONS: dict[str, Any] = {
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "lifespan": "off",
    "limit_concurrency": 64,
    "h11_max_incomplete_event_size": 16384,
    "timeout_keep_alive": 15,
    "timeout_graceful_shutdown": 2,
}


class Server(Protocol):
    """As uvicorn's: serves these sockets until `should_exit`."""

    should_exit: bool

    def run(self, sockets: list[socket.socket] | None = None) -> None: ...


@contextlib.contextmanager
def serving(server: Server, host: str, port: int) -> Iterator[int]:
    """The port it listens on (0 picks a free one). ResourceError where it is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ResourceError(f"page on {host}:{port}", error.strerror or str(error), "set page.port") from None
    thread = threading.Thread(target=server.run, args=([listener],), name="page", daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(5)
        listener.close()
