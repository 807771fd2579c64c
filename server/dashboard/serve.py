"""Runs the coordinator's page and its metrics in threads beside whatever else the process does."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from usfmae.core import metrics
from usfmae.core.config.sources import MetricsSettings, PageSettings
from usfmae.core.errors import ResourceError
from usfmae.core.log import note
from usfmae.server.dashboard.app import application
from usfmae.server.dashboard.figures import figures
from usfmae.server.dashboard.view import History
from usfmae.server.home import Home

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def watched(home: Home, page: PageSettings, measured: MetricsSettings) -> Iterator[dict[str, int]]:
    """Page and metrics while the block runs; their ports by name. ResourceError where a port is taken."""
    ports: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        if measured.port:
            history = History()
            source = metrics.registry(lambda: figures(home, history), "server")
            stop, ports["metrics"] = metrics.serve(source, measured.host, measured.port)
            stack.callback(stop)
        if page.port:
            ports["page"] = stack.enter_context(serving(application(home, page.names), page.host, page.port))
            note(logger, "page", address=f"http://{page.host}:{ports['page']}", token=str(home.keys / "page.token"))
        yield ports


@contextlib.contextmanager
def serving(app: Any, host: str, port: int) -> Iterator[int]:
    """An ASGI application in a thread; the port it listens on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ResourceError(f"page on {host}:{port}", error.strerror or str(error), "set page.port") from None
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="off", timeout_keep_alive=15,
        limit_concurrency=64, h11_max_incomplete_event_size=16384, timeout_graceful_shutdown=2,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="page", daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(5)
        listener.close()
