"""A C-STORE listener: the PACS or the scanner sends, the spool keeps (DICOM PS3.4 Annex B, PS3.7 section 9.1.1).

Ultrasound classes only. Instances are written as they arrive, never decoded here. "Success" is answered once the file
is on disk: associations that wait at the same time share one flush. Anything else makes the sender keep the instance:
0xA700 (out of resources) below the disk floor, 0xC000 (cannot understand) for what is larger than the limit.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from pynetdicom import _config, evt, register_uid
from pynetdicom.association import Association
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dsutils import create_file_meta
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import Verification, uid_to_service_class  # type: ignore[attr-defined]

from usfmae.client.intake import dimse_server
from usfmae.client.intake.dimse_server import Entity, LimitedServer, Received
from usfmae.client.intake.spool import Incoming, Spool, TooLargeError
from usfmae.core import log
from usfmae.core.config.sources import CstoreSettings
from usfmae.core.errors import ConfigError, ResourceError
from usfmae.core.read.dicom import ROOT, ULTRASOUND

logger = logging.getLogger(__name__)

SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
NOT_SUPPORTED = 0x0122  # SOP class (PS3.7 annex C.5.6)
ENDING = 5.0  # seconds that a stopping listener waits for what is being answered
MOST_NAMED = 1000  # pairs of a sender and a class that are remembered as not taken
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"  # of DICOM (PS3.7 annex A)
QUIET_SECONDS = 60.0  # between two log lines about connections from one address that were turned away

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
# (source, diagnostic) of a rejection, PS3.8 table 9-21
REASONS: dict[tuple[int | None, int | None], str] = {
    (1, 2): "no DICOM application",
    (1, 3): "not in cstore.allow",
    (1, 7): "calls another title than cstore.ae_title",
    (2, 2): "another version of the protocol",
    (3, 2): "as many associations as cstore.associations allows",
}


def storage_classes(settings: CstoreSettings) -> list[str]:
    """SOP classes that are taken: ultrasound, the retired classes included, and those of the settings."""
    return [*(ROOT + below for below in ULTRASOUND), *settings.sop_classes]


class StoredFile:
    """The data set of one request on its way to the spool; what is refused is read and dropped, so that the sender
    hears why."""

    def __init__(self, incoming: Incoming | None, status: int = SUCCESS, why: str = "") -> None:
        self.incoming, self.status, self.why = incoming, status, why

    def write(self, content: bytes) -> None:
        if self.incoming is None:
            return
        try:
            self.incoming.write(content)
        except Exception as error:
            self.refuse(error)

    def refuse(self, error: Exception) -> None:
        self.discard()
        self.status = CANNOT_UNDERSTAND if isinstance(error, TooLargeError) else OUT_OF_RESOURCES
        self.why = error.why if isinstance(error, ResourceError) else type(error).__name__

    def discard(self) -> None:
        if self.incoming is not None:
            self.incoming.discard()
        self.incoming = None


@dataclass
class Listener:
    """A running listener: what it took in and what it did not, by reason; `stop` ends it."""

    settings: CstoreSettings
    spool: Spool
    counts: Counter[str] = field(
        default_factory=lambda: Counter(stored=0, repeated=0, refused=0, rejected=0, unsupported=0, turned_away=0)
    )
    unsupported: Counter[tuple[str, str]] = field(default_factory=Counter)  # (calling title, SOP class)
    lock: threading.Lock = field(default_factory=threading.Lock)
    logged: dict[str, float] = field(default_factory=dict)  # address -> when a line was last written about it
    server: LimitedServer = field(init=False)

    def __post_init__(self) -> None:
        self.server = self._server()
        self.server.on_turned_away = self.turned_away
        self.port = int(self.server.server_address[1])
        self.server.start()

    def _server(self) -> LimitedServer:
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self.store),
            (evt.EVT_REQUESTED, self.requested),
            (evt.EVT_REJECTED, self.rejected),
            (evt.EVT_ACCEPTED, self.accepted),
        ]
        try:
            return LimitedServer(
                entity(self.settings),
                (self.settings.host, self.settings.port),
                handlers,
                self.open_file,
                self.settings.idle_seconds,
                _tls(self.settings),
            )
        except OSError as error:
            where = f"C-STORE listener {self.settings.host}:{self.settings.port}"
            raise ResourceError(where, error.strerror or str(error), "set cstore.port and cstore.host") from None

    def stop(self) -> None:
        """End the associations; what was answered with success is on disk."""
        self.server.end(ENDING)

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    # --- one instance

    def open_file(self, message: DIMSEMessage, association: Association) -> StoredFile:
        """A file in the spool that begins with its file meta information (PS3.10 section 7.1)."""
        try:
            head = _file_head(message, association)
        except Exception as error:  # names that are absent or none: to send it again would not help
            return StoredFile(None, CANNOT_UNDERSTAND, f"a request of no name: {type(error).__name__}")
        if message.command_set.AffectedSOPClassUID not in storage_classes(self.settings):
            return StoredFile(None, NOT_SUPPORTED, "another SOP class than was negotiated")
        file = StoredFile(None)
        try:
            file.incoming = self.spool.incoming()
            file.incoming.write(head)
        except Exception as error:
            file.refuse(error)
        return file

    def store(self, event: evt.Event) -> int:
        """The status of a C-STORE response; success only where the file is on disk."""
        received = getattr(event.request, "DataSet", None)
        file = received.file if isinstance(received, Received) else None
        if not isinstance(file, StoredFile):
            file = StoredFile(None, CANNOT_UNDERSTAND, "no data set")
        new = self._keep(file)
        if isinstance(received, Received):
            received.discard()
            received.reception.stored()
        if file.status == SUCCESS:
            self.count("stored" if new else "repeated")
        else:
            self.count("refused")
            log.note(logger, "instance refused", logging.WARNING, why=file.why)
        return file.status

    def _keep(self, file: StoredFile) -> bool:
        if file.incoming is None:
            return False
        try:
            new = file.incoming.keep()
            self.spool.settle()
        except Exception as error:  # whatever it is: the sender keeps its instance
            file.refuse(error)
            return False
        file.incoming = None
        return new

    # --- associations

    def requested(self, event: evt.Event) -> None:
        """Before the negotiation: what pynetdicom leaves to its user."""
        request = event.assoc.requestor.primitive
        if not isinstance(request, A_ASSOCIATE):
            return
        if request.application_context_name != APPLICATION_CONTEXT:
            event.assoc.acse.send_reject(1, 1, 2)
            self.rejected(event)
            event.assoc.kill()  # once the answer is sent
            return
        for context in event.assoc.acceptor.supported_contexts:
            # The sender's order decides, not ours: what it has compressed it need not unpack for us.
            every = request.presentation_context_definition_list
            offered = [s for c in every if c.abstract_syntax == context.abstract_syntax for s in c.transfer_syntax]
            ranks = {syntax: rank for rank, syntax in reversed(list(enumerate(offered)))}
            context.transfer_syntax = sorted(
                context.transfer_syntax, key=lambda s: ranks.get(UID(str(s)), len(offered))
            )

    def rejected(self, event: evt.Event) -> None:
        answer = event.assoc.acceptor.primitive
        why = REASONS.get((answer.result_source, answer.diagnostic), "") if answer else ""
        self.count("rejected")
        log.note(logger, "association rejected", logging.WARNING, caller=_caller(event), why=why)

    def accepted(self, event: evt.Event) -> None:
        """Says once for each sender which of its classes are not taken."""
        caller = _caller(event)
        for context in event.assoc.rejected_contexts:
            uid = str(context.abstract_syntax)
            why = "transfer syntax" if uid in storage_classes(self.settings) else "SOP class"
            with self.lock:
                self.counts["unsupported"] += 1
                first = (caller, uid) not in self.unsupported and len(self.unsupported) < MOST_NAMED
                if first or (caller, uid) in self.unsupported:
                    self.unsupported[caller, uid] += 1
            if first:
                log.note(logger, f"{why} not accepted", caller=caller, sop_class=uid, name=UID(uid).name)

    def named(self) -> set[tuple[str, str]]:
        """(calling title, SOP class) of what was offered and not taken."""
        with self.lock:
            return set(self.unsupported)

    def turned_away(self, address: str, why: str) -> None:
        self.count("turned_away")
        now = time.monotonic()
        with self.lock:
            self.logged = {other: when for other, when in self.logged.items() if now - when < QUIET_SECONDS}
            first = self.logged.setdefault(address, now) == now
        if first:
            log.note(logger, "connection turned away", logging.WARNING, address=address, why=why)


def _caller(event: evt.Event) -> str:
    return str(event.assoc.requestor.ae_title)[:16]


def listen(settings: CstoreSettings, spool: Spool) -> Listener:
    """Listen in threads until `stop()`. ConfigError without an allow-list; ResourceError where the port is taken."""
    if not settings.allow:
        raise ConfigError("cstore.allow", "is empty, so nobody could send", "list the AE titles of your senders")
    listener = Listener(settings, spool)
    log.note(logger, "listening for C-STORE", port=listener.port, tls=settings.certificate is not None)
    return listener


def entity(settings: CstoreSettings) -> Entity:
    """The application entity: its title, who may call, what it takes."""
    # Their lines and warnings hold UIDs and what strangers sent; ours say what happened.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\.")
    _config.LOG_HANDLER_LEVEL = "none"  # a text of every message, made whether somebody reads it or not
    made = Entity(ae_title=settings.ae_title)
    made.require_called_aet = True
    made.require_calling_aet = list(settings.allow)
    made.maximum_associations = settings.associations
    made.maximum_pdu_size = dimse_server.LONGEST_PDU
    made.acse_timeout = dimse_server.ASKING_SECONDS
    made.network_timeout = made.dimse_timeout = settings.idle_seconds
    for uid in storage_classes(settings):
        if uid_to_service_class(uid) is not StorageServiceClass:  # retired or private
            register_uid(uid, "Storage_" + uid.replace(".", "_"), StorageServiceClass)
        made.add_supported_context(uid, TRANSFER_SYNTAXES)
    made.add_supported_context(Verification)
    return made


def _file_head(message: DIMSEMessage, association: Association) -> bytes:
    """Preamble, prefix and file meta information of the data set that follows."""
    command = message.command_set
    context = next(c for c in association.accepted_contexts if c.context_id == message.context_id)
    head = DicomBytesIO()
    head.write(b"\0" * 128 + b"DICM")
    meta = create_file_meta(
        sop_class_uid=command.AffectedSOPClassUID,
        sop_instance_uid=command.AffectedSOPInstanceUID,
        transfer_syntax=context.transfer_syntax[0],
    )
    write_file_meta_info(head, meta)
    return head.getvalue()


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
