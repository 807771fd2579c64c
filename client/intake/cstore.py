"""A C-STORE listener: the PACS or the scanner sends, the spool keeps (DICOM PS3.4 Annex B, PS3.7 section 9.1.1).

Instances are written as they arrive, never decoded here. Anything but "success" makes the sender keep the instance:
0xA700 (out of resources) below the disk floor.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
from dataclasses import dataclass, field

from usfmae.client.intake.association import Association
from usfmae.client.intake.spool import Spool
from usfmae.core import log
from usfmae.core.config.sources import CstoreSettings
from usfmae.core.errors import ConfigError, ResourceError

logger = logging.getLogger(__name__)

UNASKED = 32  # connections beyond the associations allowed: who has not asked yet, or is about to hear "try later"
ENDING = 5.0  # seconds that a stopping listener waits for what has arrived to be on disk


@dataclass
class Listener:
    """Takes connections in a thread, each association in one of its own, until `stop`."""

    settings: CstoreSettings
    spool: Spool
    server: socket.socket
    tls: ssl.SSLContext | None
    counts: dict[str, int] = field(default_factory=lambda: {"stored": 0, "repeated": 0, "refused": 0, "rejected": 0})
    open: dict[threading.Thread, socket.socket] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.port = int(self.server.getsockname()[1])
        self.places = threading.BoundedSemaphore(self.settings.associations)
        threading.Thread(target=self._accept, name="cstore", daemon=True).start()

    def stop(self) -> None:
        """End the associations; what was acknowledged is on disk afterwards."""
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        with self.lock:
            left = list(self.open.items())
        for thread, link in left:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            thread.join(ENDING)

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self.server.accept()
                link.settimeout(self.settings.idle_seconds)
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.tls:  # shaken hands in the association's thread: who connects and says nothing delays nobody
                    link = self.tls.wrap_socket(link, server_side=True, do_handshake_on_connect=False)
            except OSError:
                if self.server.fileno() < 0:  # stopped
                    return
                continue
            thread = threading.Thread(target=self._attend, args=(link,), name="association", daemon=True)
            with self.lock:
                crowded = len(self.open) >= self.settings.associations + UNASKED
                if not crowded:  # started here: `stop` joins what is open
                    self.open[thread] = link
                    thread.start()
            if crowded:
                link.close()

    def _attend(self, link: socket.socket) -> None:
        taken = False

        def has_place() -> bool:
            nonlocal taken
            taken = self.places.acquire(blocking=False)
            return taken

        try:
            with link:
                if isinstance(link, ssl.SSLSocket):
                    link.do_handshake()
                Association(link, self.settings, self.spool, self.count).run(has_place)
        except OSError as error:  # a handshake that failed
            log.note(logger, "connection ended early", logging.WARNING, why=type(error).__name__)
        finally:
            if taken:
                self.places.release()
            with self.lock:
                self.open.pop(threading.current_thread(), None)


def listen(settings: CstoreSettings, spool: Spool) -> Listener:
    """Listen in threads until `stop()`. ConfigError without an allow-list; ResourceError where the port is taken."""
    if not settings.allow:
        raise ConfigError("cstore.allow", "is empty, so nobody could send", "list the AE titles of your senders")
    tls = _tls(settings)
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        server = socket.create_server((settings.host, settings.port), family=family, backlog=128)
    except OSError as error:
        where = f"C-STORE listener {settings.host}:{settings.port}"
        raise ResourceError(where, error.strerror or str(error), "set cstore.port and cstore.host") from None
    log.note(logger, "listening for C-STORE", port=server.getsockname()[1], tls=tls is not None)
    return Listener(settings, spool, server, tls)


def _tls(settings: CstoreSettings) -> ssl.SSLContext | None:
    if settings.certificate is None or settings.key is None:
        if settings.certificate or settings.key:
            raise ConfigError("cstore.certificate", "certificate and key go together", "give both or neither")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.certificate, settings.key)
        if settings.client_ca:
            context.load_verify_locations(settings.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("cstore.certificate", str(error), "give PEM files this account may read") from None
    return context
