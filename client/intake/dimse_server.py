"""pynetdicom's acceptor, bounded: what a sender may cost before and after it has an association (PS3.8 section 9).

pynetdicom reads the protocol. Here it gets limits that it has none of: how long a connection may wait before it asks,
how many may wait, how long a PDU may be and may take, and how long an association may do nothing but echo. What
breaks a limit costs its own association alone. A data set goes fragment after fragment to the file that `open_file`
gives: memory holds one PDU of it. (`STORE_RECV_CHUNKED_DATASET` does the same, but into the system's temporary folder,
without a bound, and leaves a file behind for each transfer that breaks off.)
"""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from socketserver import BaseServer
from typing import Any, Protocol

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, DIMSEMessage
from pynetdicom.fsm import StateMachine
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from usfmae.core import log

logger = logging.getLogger(__name__)

LONGEST_PDU = 1 << 18  # bytes of content that a sender may put into one P-DATA-TF
LONGEST_REQUEST = 1 << 17  # bytes of an A-ASSOCIATE-RQ: twice of 128 contexts with every transfer syntax
MOST_CONTEXTS = 128  # presentation contexts of one association (PS3.8 section 9.3.2.2: odd numbers up to 255)
LONGEST_COMMAND = 1 << 14  # bytes of a command set; it has a few hundred
MOST_PENDING = 4  # requests that a sender may have sent before the first is answered; one by the standard
ASKING_SECONDS = 5.0  # from the connection to the whole association request, TLS included
MOST_WAITING = 32  # connections that have not asked yet; beyond, the one that has waited longest goes
MOST_WAITING_FROM_ONE = 8  # of one address
MOST = 256  # connections in all, those included that were closed and whose threads have not ended yet
PROGRESS = 1 << 20  # bytes of an instance that count as much as an instance for the idle clock
POLL_SECONDS = 0.2  # between two looks at the clocks

REQUEST, CONTEXT_ITEM = 0x01, 0x20  # type of an A-ASSOCIATE-RQ, and of its presentation context items
FIXED = 74  # bytes of an A-ASSOCIATE-RQ before its items


class DataSetFile(Protocol):
    """Where the data set of one C-STORE request goes."""

    def write(self, content: bytes) -> None: ...
    def discard(self) -> None: ...


class Received(BytesIO):
    """What pynetdicom writes the fragments of a data set to: hands them on, keeps none."""

    def __init__(self, reception: Reception, message: DIMSEMessage) -> None:
        super().__init__()
        self.reception, self.message = reception, message
        self.file: DataSetFile | None = None

    def write(self, content: Any) -> int:
        if not isinstance(self.message, C_STORE_RQ):
            raise ValueError("a data set that belongs to no C-STORE request")
        if self.file is None:
            self.file = self.reception.open_file(self.message, self.reception.assoc)
            self.reception.files.add(self)
        self.file.write(bytes(content))
        self.reception.came(len(content))
        return len(content)

    def discard(self) -> None:
        self.reception.files.discard(self)
        if self.file is not None:
            self.file.discard()


OpenFile = Callable[[DIMSEMessage, Association], DataSetFile]


class Reception(DIMSEServiceProvider):
    """The messages of one association. Its clock counts instances: to echo keeps no association."""

    def __init__(self, association: Association, open_file: OpenFile) -> None:
        super().__init__(association)
        self.open_file = open_file
        self.files: set[Received] = set()  # not answered yet
        self.progress = time.monotonic()
        self._bytes = 0

    def came(self, count: int) -> None:
        self._bytes += count
        if self._bytes >= PROGRESS:
            self.stored()

    def stored(self) -> None:
        """An instance is complete, or much of one has come."""
        self.progress, self._bytes = time.monotonic(), 0

    def receive_primitive(self, primitive: P_DATA) -> None:
        """A message or a part of it. One that cannot be, or an error of our own, ends this association alone."""
        try:
            message = self.message
            if message is None:
                message = self.message = DIMSEMessage()
                message.data_set = Received(self, message)
            super().receive_primitive(primitive)
            if message.encoded_command_set.tell() > LONGEST_COMMAND:
                raise ValueError(f"a command set of more than {LONGEST_COMMAND} bytes")
            if self.message is None and not isinstance(message, C_STORE_RQ | C_ECHO_RQ):
                raise ValueError(f"{type(message).__name__}: neither C-STORE nor C-ECHO")
            if self.msg_queue.qsize() > MOST_PENDING:
                raise ValueError("requests without waiting for answers")
        except Exception as error:
            log.note(logger, "association ended early", logging.WARNING, why=f"{type(error).__name__}: {error}"[:200])
            self.dul.event_queue.put("Evt19")  # an invalid PDU (PS3.8 section 9.2.2): answered with A-ABORT

    def discard(self) -> None:
        """Forget what came and was not answered: the sender keeps it."""
        for file in list(self.files):
            file.discard()


class LimitedSocket(AssociationSocket):
    """An association's socket that takes no PDU which is too long or too slow."""

    def __init__(self, opened: AssociationSocket, ask_by: float, patience: float) -> None:
        vars(self).update(vars(opened))  # takes over an open connection, which the state machine has heard of already
        self.ask_by: float | None = ask_by  # the time by which the association request has come
        self.patience = patience  # seconds for each later PDU
        self.kind: int | None = None  # of the PDU whose content comes next

    def recv(self, nr_bytes: int) -> bytearray:
        """A PDU's header or its content, whole. OSError where it is too long or takes too long."""
        assert self.socket is not None
        asks = self.kind == REQUEST
        if nr_bytes > (LONGEST_REQUEST if asks else LONGEST_PDU + FIXED):
            raise OSError(errno.EMSGSIZE, f"a PDU of {nr_bytes} bytes")
        content, until = bytearray(nr_bytes), self.ask_by or time.monotonic() + self.patience
        left = memoryview(content)
        while left:
            self.socket.settimeout(max(until - time.monotonic(), 0.001))
            # Senders that write a PDU's header and content apart (DCMTK does) wait for the acknowledgement of the
            # header, which Linux delays by 40 ms unless it is asked for.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            count = self.socket.recv_into(left)
            if not count:
                return content[: nr_bytes - len(left)]
            left = left[count:]
        self.socket.settimeout(self.patience)
        if asks and _contexts(content) > MOST_CONTEXTS:
            raise OSError(errno.EMSGSIZE, f"more than {MOST_CONTEXTS} presentation contexts")
        if self.kind is not None:
            self.ask_by = None
        self.kind = content[0] if self.kind is None and content else None
        return content


def _contexts(request: bytearray) -> int:
    """Presentation context items of an A-ASSOCIATE-RQ, counted before anything is made of them."""
    at, count = FIXED - 6, 0
    while at + 4 <= len(request):
        kind, length = struct.unpack_from(">BxH", request, at)
        count += kind == CONTEXT_ITEM
        at += 4 + length
    return count


class _StateMachine(StateMachine):
    """A step that the standard does not foresee ends the association; pynetdicom's thread would die of it."""

    def do_action(self, event: str) -> None:
        try:
            super().do_action(event)
        except Exception as error:
            log.note(logger, "association ended early", logging.WARNING, why=type(error).__name__)
            self.dul.kill_dul()


class Entity(AE):
    """An application entity that counts as active who has asked for an association, not who only has connected."""

    @property
    def active_associations(self) -> list[Association]:
        every = [a for a in super().active_associations if a.requestor.primitive is not None]
        return [a for a in every if not (a.is_rejected or a.is_aborted or a.is_released)]


@dataclass(eq=False)
class DimseConnection:
    """One TCP connection; it counts as unknown until its association request has come."""

    socket: socket.socket
    address: str
    since: float
    closed: bool = False
    association: Association | None = None
    reception: Reception | None = None

    @property
    def waits(self) -> bool:
        return self.association is None or self.association.requestor.primitive is None

    @property
    def over(self) -> bool:
        thread = self.association
        ended = thread is not None and thread.ident is not None and not thread.is_alive()
        return ended or (thread is None and self.socket.fileno() < 0)

    def close(self) -> None:
        """From any thread: whoever reads from it sees its end."""
        self.closed = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class _Handler(RequestHandler):
    """Waits for the first byte before pynetdicom's two threads begin: who says nothing costs next to nothing."""

    server: LimitedServer

    def handle(self) -> None:
        until = time.monotonic() + ASKING_SECONDS
        if not select.select([self.request], [], [], ASKING_SECONDS)[0]:
            self.server.turned_away(self.client_address[0], f"no request within {ASKING_SECONDS:g} s")
            self.server.shutdown_request(self.request)
            return
        if not socket.socket.recv(self.request, 1, socket.MSG_PEEK):  # somebody looked whether the port is open
            self.server.shutdown_request(self.request)
            return
        self.request.settimeout(max(until - time.monotonic(), 0.001))
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()
        super().handle()


class LimitedServer(ThreadedAssociationServer):
    """Counts connections: where there are too many, in all or from one address, the one that has waited longest without a request is closed."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        entity: AE,
        address: tuple[str, int],
        handlers: list[Any],
        open_file: OpenFile,
        idle_seconds: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.open_file, self.idle_seconds = open_file, idle_seconds
        self.connections: list[DimseConnection] = []  # the oldest first
        self.lock = threading.Lock()
        self.on_turned_away: Callable[[str, str], None] = lambda address, why: None
        contexts = entity.supported_contexts
        super().__init__(entity, address, entity.ae_title, contexts, tls, handlers, _Handler)
        self.bind(evt.EVT_CONN_OPEN, self._opened)

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, args=(POLL_SECONDS,), name="cstore", daemon=True).start()

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection; TLS shakes hands later, in the connection's own thread."""
        assert self.socket is not None
        connection, address = self.socket.accept()
        connection.settimeout(ASKING_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.ssl_context:
            connection = self.ssl_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a connection may come in; an older one without a request may be closed for it."""
        self.sweep()
        with self.lock:
            waiting = [c for c in self.connections if c.waits and not c.closed]
            same = [c for c in waiting if c.address == client_address[0]]
            evicted = same[0] if len(same) >= MOST_WAITING_FROM_ONE else None
            evicted = evicted or (waiting[0] if len(waiting) >= MOST_WAITING else None)
            has_room = len(self.connections) < MOST
            if has_room:
                self.connections.append(DimseConnection(request, client_address[0], time.monotonic()))
        if evicted is not None:
            evicted.close()
        if evicted is not None or not has_room:
            self.turned_away(client_address[0], "too many connections that ask for nothing")
        return has_room

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A handshake that failed, or an error of ours: this connection's end alone."""
        error = sys.exc_info()[1]
        log.note(logger, "connection ended early", logging.WARNING, why=type(error).__name__)

    def turned_away(self, address: str, why: str) -> None:
        self.on_turned_away(address, why)

    def _opened(self, event: evt.Event) -> None:
        """Give a new association its limits."""
        association = event.assoc
        opened = association.dul.socket
        assert opened is not None
        reception = Reception(association, self.open_file)
        with self.lock:
            connection = next((c for c in self.connections if c.socket is opened.socket), None)
            if connection is not None:
                connection.association, connection.reception = association, reception
        since = connection.since if connection is not None else time.monotonic()
        association.dimse = reception
        association.dul.state_machine = _StateMachine(association.dul)
        association.dul.socket = LimitedSocket(opened, since + ASKING_SECONDS, self.idle_seconds)

    def service_actions(self) -> None:
        """Called between two connections, and every `POLL_SECONDS`."""
        self.sweep()
        now = time.monotonic()
        with self.lock:
            live = [c for c in self.connections if not c.closed]
            idle = [c for c in live if c.reception and now - c.reception.progress > self.idle_seconds]
        for connection in idle:
            if not connection.waits:
                log.note(logger, "association ended early", logging.WARNING, why="no instance for too long")
            connection.close()

    def sweep(self) -> None:
        """Forget connections that are over, and what they left half sent."""
        with self.lock:
            over = [c for c in self.connections if c.over]
            self.connections = [c for c in self.connections if c not in over]
        for connection in over:
            if connection.reception:
                connection.reception.discard()

    def end(self, patience: float) -> None:
        """Stop listening, and end every association within so many seconds."""
        BaseServer.shutdown(self)
        self.server_close()
        with self.lock:
            left, self.connections = self.connections, []
        for connection in left:
            connection.close()
        until = time.monotonic() + patience
        for connection in left:
            if connection.association and not connection.waits:
                connection.association.join(max(until - time.monotonic(), 0.0))
            if connection.reception:
                connection.reception.discard()
