"""Connections to the public port: who may hold a connection without having proved a key, and for how long.

A connection counts as a stranger's until a call on it has passed node_auth. Strangers are few, in all and from one
address; where there are too many, the one that has waited longest goes, so that a hospital which proves its key at once
gets in through any crowd that only stands there. Connections are counted before TLS begins. Whoever has proved a key
holds few as well, so that no hospital takes the places of all the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

HANDSHAKE_SECONDS = 20.0  # for TLS
MOST_OF_ONE_KEY = 16  # connections; an agent has two
FULL = "too many connections without a key"
FULL_OF_ONE = "too many connections with one key"

logger = logging.getLogger(__name__)

Peer = tuple[str, int]  # address and port of the caller: the name of a connection
Refuse = Callable[[int, str, str], None]  # called for each refusal: HTTP status, why, the caller's address


class ConnectionLimits:
    """Counts strangers, in the event loop's thread alone."""

    def __init__(self, most: int, most_from_one: int, on_refused: Refuse) -> None:
        self.most, self.most_from_one, self.on_refused = most, most_from_one, on_refused
        self.strangers: dict[Peer, socket.socket] = {}  # the longest waiting first
        self.proved: dict[Peer, tuple[bytes, socket.socket]] = {}  # the key that was proved first; the oldest first

    def enter(self, peer: Peer, connection: socket.socket) -> None:
        """A new connection; an older stranger's is closed where there are too many."""
        same = [other for other in self.strangers if other[0] == peer[0]]
        if len(same) >= self.most_from_one:
            self._close(same[0], self.strangers.pop(same[0]), FULL)
        elif len(self.strangers) >= self.most:
            longest = next(iter(self.strangers))
            self._close(longest, self.strangers.pop(longest), FULL)
        self.strangers[peer] = connection

    def prove(self, peer: Peer, key: bytes) -> bool:
        """A call on this connection has proved a key. False where it was closed: the answer would not arrive."""
        connection = self.strangers.pop(peer, None)
        if connection is not None:
            same = [other for other, (proved, _) in self.proved.items() if proved == key]
            if len(same) >= MOST_OF_ONE_KEY:
                self._close(same[0], self.proved.pop(same[0])[1], FULL_OF_ONE)
            self.proved[peer] = key, connection
        return peer in self.proved

    def leave(self, peer: Peer) -> None:
        self.strangers.pop(peer, None)
        self.proved.pop(peer, None)

    def _close(self, peer: Peer, connection: socket.socket, why: str) -> None:
        with contextlib.suppress(OSError):  # gone by itself
            connection.shutdown(socket.SHUT_RDWR)
        self.on_refused(429, why, peer[0])


class LimitedServer(uvicorn.Server):
    """uvicorn's server with limits: connections are accepted here and handed to its protocol."""

    def __init__(self, config: uvicorn.Config, limits: ConnectionLimits) -> None:
        super().__init__(config)
        self.limits = limits
        self.tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        self.servers = []
        for listener in sockets or ():
            listener.setblocking(False)
            self._spawn(self._accept(listener))
        self.started = True

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while not self.should_exit:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:  # no descriptors left: the limits will have closed some by then
                logger.warning("accept: %s", error)
                await asyncio.sleep(0.1)
                continue
            connection.setblocking(False)
            self._spawn(self._start(connection, (address[0], address[1])))

    async def _start(self, connection: socket.socket, peer: Peer) -> None:
        """TLS, then uvicorn's protocol, which says when the connection ends."""
        self.limits.enter(peer, connection)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, connection, ssl=self.config.ssl, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except (TimeoutError, OSError):  # no TLS, closed by the limits, or too slow
            self.limits.leave(peer)

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in list(self.tasks):
            task.cancel()
        await super().shutdown(sockets)
