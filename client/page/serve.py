"""Runs the site's page in a thread beside the agent."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from usfmae.core.web import server_thread


def serving(app: Any, host: str, port: int) -> AbstractContextManager[int]:
    """An ASGI application in a thread; the port it listens on. ResourceError where the port is taken."""
    config = uvicorn.Config(app, http=server_thread.page_protocol(H11Protocol), **server_thread.OPTIONS)
    return server_thread.serving(uvicorn.Server(config), host, port)
