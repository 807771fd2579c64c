"""Runs the coordinator's page and its metrics in threads of the process that serves or shows a federation."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from usfmae.core import metrics
from usfmae.core.config.sources import MetricsSettings, PageSettings
from usfmae.core.log import note
from usfmae.core.web import server_thread
from usfmae.server.dashboard.app import application
from usfmae.server.dashboard.figures import figures
from usfmae.server.dashboard.view import History
from usfmae.server.layout import Layout

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def watched(home: Layout, page: PageSettings, measured: MetricsSettings) -> Iterator[dict[str, int]]:
    """Page and metrics while the block runs; their ports by name. ResourceError where a port is taken."""
    ports: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        if measured.port:
            history = History()
            source = metrics.registry(lambda: figures(home, history), "server")
            stop, ports["metrics"] = server_thread.serve_metrics(source, measured.host, measured.port)
            stack.callback(stop)
        if page.port:
            address = stack.enter_context(page_served(home, page))
            ports["page"] = int(address.rsplit(":", 1)[1])
        yield ports


@contextlib.contextmanager
def page_served(home: Layout, page: PageSettings) -> Iterator[str]:
    """The page while the block runs; its address. ResourceError where the port is taken."""
    with serving(application(home, page), page.host, page.port) as port:
        address = f"http://{page.host}:{port}"
        note(logger, "page", address=address, token=str(home.keys / "page.token"))
        yield address


def serving(app: Any, host: str, port: int) -> contextlib.AbstractContextManager[int]:
    """An ASGI application in a thread; the port it listens on. ResourceError where the port is taken."""
    config = uvicorn.Config(app, http=server_thread.page_protocol(H11Protocol), **server_thread.OPTIONS)
    return server_thread.serving(uvicorn.Server(config), host, port)
