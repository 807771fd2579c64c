"""The gateway: one public TLS port that speaks Flower's fleet API and nothing else.

Flower's control and runtime APIs are not mounted at all: nobody, inside or outside, can submit code or read the state
over the network. Calls pass `node_auth`, then `fleet_api`, which works on the state that `link_state` holds.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from pathlib import Path
from typing import ClassVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from usfmae.core.config.coordinator import NetworkSettings
from usfmae.core.errors import NetworkError
from usfmae.core.web.server_thread import HeaderTimeout
from usfmae.server.flower.connection_limits import ConnectionLimits, LimitedServer, Refuse
from usfmae.server.flower.fleet_api import FleetApi
from usfmae.server.flower.link_state import LinkState
from usfmae.server.flower.node_auth import BodyLimits, NodeAuth

BEAT_SECONDS = 10.0


class _Protocol(HeaderTimeout, H11Protocol):
    """uvicorn's HTTP/1.1, which tells the limits when a connection ends and what was refused."""

    limits: ClassVar[ConnectionLimits]
    on_refused: ClassVar[Refuse]

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self.client:
            self.limits.leave(self.client)

    def send_400_response(self, msg: str) -> None:
        self._refused(400, "not HTTP")
        super().send_400_response(msg)

    def on_slow(self) -> None:
        self._refused(408, f"headers took longer than {self.header_seconds:.0f} s")

    def _refused(self, status: int, why: str) -> None:
        type(self).on_refused(status, why, self.client[0] if self.client else "?")


class Gateway:
    """Serves the fleet API over TLS from a thread: `with Gateway(...) as gateway:`, then use `gateway.link`."""

    def __init__(
        self,
        link: LinkState,
        settings: NetworkSettings,
        certificate: Path,
        key: Path,
        on_refused: Refuse = lambda status, why, client: None,
    ) -> None:
        self.link, self.settings = link, settings
        self.socket = _listen(settings.host, settings.port)
        self.port: int = self.socket.getsockname()[1]
        limits = ConnectionLimits(settings.connections, settings.connections_from_one, on_refused)
        fleet_api = FleetApi(link.state, link.waits)
        link.on_request = fleet_api.wake
        application = NodeAuth(
            fleet_api,
            link.knows,
            BodyLimits(int(settings.body_mib * 2**20), settings.body_seconds),
            on_refused,
            limits.prove,
        )
        config = uvicorn.Config(
            application,
            http=type("Protocol", (_Protocol,), {"limits": limits, "on_refused": staticmethod(on_refused)}),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # the caller is who holds the connection, not what a header says
            timeout_keep_alive=75,
            limit_concurrency=2 * settings.connections,  # as many hospitals as strangers
            ssl_certfile=str(certificate),
            ssl_keyfile=str(key),
        )
        self.server = LimitedServer(config, limits)
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), name="gateway", daemon=True)
        self.stopped = threading.Event()

    def __enter__(self) -> Gateway:
        for name in ("uvicorn", "flwr"):  # Flower sets its own level when it is imported
            logging.getLogger(name).setLevel("ERROR")
        self.thread.start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        while not self.server.started:
            if not self.thread.is_alive():
                raise NetworkError(f"port {self.port}", "the TLS server did not start", "check certificate and key")
            time.sleep(0.02)
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self.server.should_exit = True
        self.thread.join(5)
        self.socket.close()

    def _beat(self) -> None:
        while not self.stopped.wait(BEAT_SECONDS):
            self.link.beat()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise NetworkError(
            f"address {host}:{port}", error.strerror or str(error), "set network.port to a free one"
        ) from None
    return listener
