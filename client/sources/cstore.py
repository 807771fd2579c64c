"""A C-STORE listener: the PACS or the scanner sends, the spool keeps (DICOM PS3.4 Annex B, PS3.7 section 9.1.1).

Instances are written as they arrive, never decoded here. "Success" is answered when the file is on disk; anything
else makes the sender keep the instance: 0xA700 (out of resources) below the disk floor, 0xC000 (cannot understand)
for what is no DICOM.
"""

from __future__ import annotations

import copy
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from usfmae.client.sources.dimse import Reader
from usfmae.client.sources.spool import Spool
from usfmae.core import log
from usfmae.core.config.sources import CstoreSettings
from usfmae.core.errors import ConfigError, ResourceError

logger = logging.getLogger(__name__)

_config.LOG_HANDLER_LEVEL = (
    "none"  # a description of every message, UIDs included, made whether somebody reads it or not
)
SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000

# As stored by scanners and archives; the listener takes any of them and converts none (PS3.5 section 10).
TRANSFER_SYNTAXES = [
    "1.2.840.10008.1.2.1",  # explicit little endian
    "1.2.840.10008.1.2",  # implicit little endian
    "1.2.840.10008.1.2.2",  # explicit big endian
    "1.2.840.10008.1.2.1.99",  # deflated
    "1.2.840.10008.1.2.5",  # RLE
    *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 100, 101, 102, 103, 104, 105, 106, 107)),
    *(f"1.2.840.10008.1.2.4.{n}" for n in (108, 201, 202, 203)),
]


@dataclass
class Listener:
    """A running listener: what it took in, and how to end it."""

    port: int
    stop: Callable[[], None]
    counts: dict[str, int] = field(default_factory=lambda: {"stored": 0, "repeated": 0, "refused": 0, "rejected": 0})


def listen(settings: CstoreSettings, spool: Spool) -> Listener:
    """Listen in threads until `stop()`. ConfigError without an allow-list; ResourceError where the port is taken."""
    if not settings.allow:
        raise ConfigError("cstore.allow", "is empty, so nobody could send", "list the AE titles of your senders")
    entity = _entity(settings)
    listener = Listener(settings.port, lambda: None)
    handlers: list[Any] = [
        (evt.EVT_C_STORE, _store, [spool, listener]),
        (evt.EVT_REJECTED, _rejected, [listener]),
        (evt.EVT_CONN_OPEN, _attend, [spool, listener]),
    ]
    try:
        server = entity.start_server(
            (settings.host, settings.port), block=False, evt_handlers=handlers, ssl_context=_tls(settings)
        )
    except OSError as error:
        where = f"C-STORE listener {settings.host}:{settings.port}"
        raise ResourceError(where, error.strerror or str(error), "set cstore.port and cstore.host") from None
    assert server is not None
    server.contexts = _Contexts(server.contexts)
    listener.port = int(server.server_address[1])
    listener.stop = server.shutdown
    log.note(logger, "listening for C-STORE", port=listener.port, tls=settings.certificate is not None)
    return listener


def _entity(settings: CstoreSettings) -> AE:
    entity = AE(ae_title=settings.ae_title)
    entity.require_called_aet = True
    entity.require_calling_aet = list(settings.allow)
    entity.maximum_associations = settings.associations
    entity.network_timeout = settings.idle_seconds
    entity.acse_timeout = entity.dimse_timeout = settings.idle_seconds
    entity.maximum_pdu_size = 1 << 18
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax, TRANSFER_SYNTAXES)  # type: ignore[arg-type]
    entity.add_supported_context(Verification)
    return entity


def _tls(settings: CstoreSettings) -> ssl.SSLContext | None:
    if settings.certificate is None or settings.key is None:
        if settings.certificate or settings.key:
            raise ConfigError("cstore.certificate", "certificate and key go together", "give both or neither")
        return None
    context = _Unhurried(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.certificate, settings.key)
        if settings.client_ca:
            context.load_verify_locations(settings.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("cstore.certificate", str(error), "give PEM files this account may read") from None
    return context


class _Unhurried(ssl.SSLContext):
    """Shakes hands when an association's own thread first reads: who connects and says nothing keeps nobody waiting."""

    def wrap_socket(self, sock: socket.socket, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        return super().wrap_socket(sock, *args, **{**kwargs, "do_handshake_on_connect": False})


def _store(event: evt.Event, spool: Spool, listener: Listener) -> int:
    """A request in an unusual form, which `dimse.Reader` left to pynetdicom."""
    try:
        content = event.encoded_dataset()  # preamble, file meta and the data set, byte for byte as sent
    except Exception as error:  # a hostile sender may put anything on the wire
        listener.counts["refused"] += 1
        log.note(logger, "instance not understood", logging.WARNING, error=type(error).__name__)
        return CANNOT_UNDERSTAND
    return _keep(content, spool, listener)


def _keep(content: bytes, spool: Spool, listener: Listener) -> int:
    try:
        kept = spool.add(content)
    except ResourceError as error:
        listener.counts["refused"] += 1
        log.note(logger, "instance refused", logging.WARNING, why=error.why)
        return OUT_OF_RESOURCES
    listener.counts["stored" if kept else "repeated"] += 1
    return SUCCESS


class _Contexts(list[Any]):
    """What we accept. Each association gets its own copy; pynetdicom's deep one takes a tenth of a second."""

    def __deepcopy__(self, memo: object) -> list[Any]:
        return [copy.copy(context) for context in self]


def _attend(event: evt.Event, spool: Spool, listener: Listener) -> None:
    """Have the association's requests taken where they arrive."""
    Reader(event.assoc, lambda content: _keep(content, spool, listener))


def _rejected(event: evt.Event, listener: Listener) -> None:
    listener.counts["rejected"] += 1
    log.note(logger, "association rejected", logging.WARNING, caller=event.assoc.requestor.ae_title[:16])
