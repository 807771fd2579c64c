"""The connection to the aggregator: comes online, keeps alive, tries again. Knows nothing of rounds."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from usfmae.client.flower import fleet_client, transport_errors
from usfmae.client.flower.request_queue import PendingRequest
from usfmae.client.site import Site, read_json, write_json
from usfmae.core import flower_objects
from usfmae.core.errors import NetworkError
from usfmae.core.log import note

logger = logging.getLogger(__name__)

PAUSES = (0.2, 1.0, 3.0, 10.0)  # seconds between tries of one call; after that the agent's loop takes over
MOST_REFUSALS = 3  # in a row before a key counts as refused: a server that has just started may not know it yet
T = TypeVar("T")


class ConnectionStopped(Exception):  # noqa: N818 - not an error
    """The agent was asked to end."""


class KeyRefusedError(NetworkError):
    """The server does not take this site's key: nothing more to try."""


class Connection:
    def __init__(self, site: Site, stopping: Callable[[], bool], wait: Callable[[float], object]) -> None:
        self.site, self.stopping, self.wait = site, stopping, wait
        self.fleet = fleet_client.FleetClient(fleet_client.address_of(site), site.node_key)
        self.online = False
        self.refusals = 0
        self.beaten = time.monotonic()

    def connect(self) -> None:
        """Come online, under the old node id where the server still knows it."""
        if self.online:
            return
        saved = int((read_json(self.site.root / "node.json") or {}).get("node_id", 0))
        if saved:
            self.fleet.node_id = saved
            with contextlib.suppress(transport_errors.UnknownKeyError):
                self.fleet.heartbeat(self.site.settings.heartbeat)
                self.online = True
        if not self.online:
            fresh = self._activate()
            if fresh != saved:  # another aggregator, or a new life of it: what it asked before is gone
                write_json(self.site.root / "node.json", {"node_id": fresh})
                for stale in PendingRequest.all(self.site):
                    stale.drop()
        self.online, self.refusals = True, 0
        self.site.note("connected", server=self.site.settings.server)
        note(logger, "connected", server=self.site.settings.server)

    def _activate(self) -> int:
        try:
            return self.fleet.activate(self.site.settings.heartbeat)
        except transport_errors.UnknownKeyError as error:
            self.refusals += 1
            if self.refusals < MOST_REFUSALS:
                raise
            self.site.note("key.refused", "refused", why=str(error))
            raise KeyRefusedError(error.what, error.why, error.do) from None

    def lost(self) -> None:
        """The server does not know this node id any more."""
        self.online, self.fleet.node_id = False, 0

    def fetcher(self, run: int) -> flower_objects.Fetch:
        return lambda id_: self.patiently(lambda: self.fleet.fetch(run, id_))

    def patiently(self, call: Callable[[], T]) -> T:
        """A few tries of one call. Stopped where the agent is asked to end meanwhile."""
        for pause in PAUSES:
            if self.stopping():
                raise ConnectionStopped
            try:
                return call()
            except transport_errors.UnreachableError:
                self.wait(pause)
        return call()

    def keep_alive(self) -> None:
        """Signs of life from a thread, also through a long download or upload."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        interval = self.site.settings.heartbeat
        while not self.stopping():
            time.sleep(min(1.0, interval / 4))
            if self.online and time.monotonic() - self.beaten > interval * 0.8:
                self.beaten = time.monotonic()
                try:
                    self.fleet.heartbeat(interval)
                except transport_errors.UnknownKeyError:
                    self.online = False
                except NetworkError:
                    pass  # the agent's loop meets the same error and reports it

    def close(self) -> None:
        """Sign off, where the server can be reached at once."""
        if self.online:
            with contextlib.suppress(NetworkError):
                self.fleet.deactivate()
        self.fleet.close()
