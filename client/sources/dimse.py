"""C-STORE requests taken straight off an association's socket (PS3.7 section 9.3.1, PS3.8 section 9.3.5 and Annex E).

pynetdicom negotiates, echoes, releases, aborts and times out. A message it carries from thread to thread, over queues
that are polled every millisecond, and decodes command sets as pydicom data sets: most of the time that a small instance
takes. Here its own reading thread puts a C-STORE request in the usual form together, has it stored and answers; every
other PDU is left to pynetdicom, which reads it as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION
from pynetdicom.association import Association

Fragment = tuple[int, int, bytes]  # presentation context, control header, content
Store = Callable[[bytes], int]  # a whole DICOM file -> the status to answer

P_DATA, HEADER = 4, 6  # type of a PDU that holds fragments; bytes before a PDU's content
DATA_TRANSFER = "Sta6"  # pynetdicom's name for the state in which fragments may come
COMMAND, LAST = 1, 2  # bits of a fragment's control header
C_STORE_REQUEST, C_STORE_RESPONSE, NO_DATA_SET = b"\1\0", b"\1\x80", b"\1\1"
SOP_CLASS, FIELD, MESSAGE, ANSWERED, DATA_SET, STATUS, SOP_INSTANCE = 0x2, 0x100, 0x110, 0x120, 0x800, 0x900, 0x1000
LONGEST_UID = 64
ROOM = 1024  # bytes of a PDU that any answer fits into
QUICKACK = socket.TCP_QUICKACK
PIECE = 1 << 18  # bytes read from a socket at once; pynetdicom reads 4 KiB
LONGEST_PDU = 1 << 20  # nothing of what a sender may announce is longer
SOON = 0.05  # seconds: a sender that is silent for longer is watched by pynetdicom


@dataclass(frozen=True)
class Request:
    """A C-STORE-RQ without its data set."""

    context: int
    message: bytes
    sop_class: bytes
    sop_instance: bytes
    syntax: bytes


class Reader:
    """Reads one association's PDUs, in the thread in which pynetdicom does."""

    def __init__(self, association: Association, store: Store) -> None:
        self.association, self.store = association, store
        self.request: Request | None = None
        self.data: list[bytes] = []
        self.ahead = bytearray()  # read from the socket, and not yet by pynetdicom
        self.gone = False
        self._socket().settimeout(association.network_timeout)  # half a PDU, or half a TLS record, and then nothing
        self.leave = association.dul._read_pdu_data
        association.dul._read_pdu_data = self.read  # type: ignore[method-assign]
        association.dul.socket.recv = self.receive  # type: ignore[union-attr, method-assign]

    def read(self) -> None:
        """In place of `DULServiceProvider._read_pdu_data`: called when something came, returns once nothing does."""
        watch = self.association._reactor_checkpoint
        try:
            watch.clear()  # pynetdicom's other thread of this association rests instead of polling
            while self._takes_one() and self._comes_soon():
                self.association.dul._idle_timer.restart()
        finally:
            watch.set()

    def receive(self, count: int) -> bytearray:
        """In place of `AssociationSocket.recv`: `count` bytes, fewer where the sender has gone."""
        self._read_ahead(count)
        content, self.ahead = self.ahead[:count], self.ahead[count:]
        return content

    def _takes_one(self) -> bool:
        """Read a PDU that belongs to a C-STORE request; any other is left to pynetdicom: False."""
        if self.association.dul.state_machine.current_state == DATA_TRANSFER and self._read_ahead(HEADER):
            kind, length = struct.unpack_from(">BxI", self.ahead)
            if kind == P_DATA and self._read_ahead(HEADER + length) and self._takes(fragments(self.ahead)):
                self.ahead = bytearray()
                return True
        self.request, self.data = None, []
        self.leave()
        return False

    def _read_ahead(self, count: int) -> bool:
        """False where the sender goes, or falls silent, before `count` bytes are there, or announces too many.

        Senders that write a PDU's header and body apart (DCMTK does) wait for the TCP acknowledgement between the two
        (Nagle's algorithm); Linux delays it by 40 ms: 20 instances a second instead of hundreds.
        """
        while len(self.ahead) < count <= HEADER + LONGEST_PDU and not self.gone:
            piece = b""
            with contextlib.suppress(OSError, AttributeError):  # broken, silent, closed by the other thread
                link = self._socket()
                piece = link.recv(min(count - len(self.ahead), PIECE))
                link.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)
            self.gone = not piece
            self.ahead += piece
        return len(self.ahead) >= count

    def _comes_soon(self) -> bool:
        link = self._socket()
        buffered = isinstance(link, ssl.SSLSocket) and link.pending() > 0
        try:
            return buffered or bool(select.select([link], [], [], SOON)[0])
        except (OSError, ValueError, TypeError):  # closed by the association's other thread
            return False

    def _socket(self) -> Any:
        link = self.association.dul.socket
        return link.socket if link else None

    def _takes(self, values: list[Fragment]) -> bool:
        """Whether these fragments, of one PDU, were part of a C-STORE request in the usual form."""
        if self.request is None and values and self.association.dimse.message is None:
            self.request = self._begun(*values.pop(0))
        request = self.request
        if request is None or any(control & COMMAND or context != request.context for context, control, _ in values):
            return False
        if any(control & LAST for _, control, _ in values[:-1]):  # a PDU holds fragments of one message
            return False
        self.data += [content for _, _, content in values]
        if values and values[-1][1] & LAST:
            status = self.store(b"".join([file_head(request), *self.data]))
            self.request, self.data = None, []
            self.association.dul.socket.send(response(request, status))  # type: ignore[union-attr]
        return True

    def _begun(self, context: int, control: int, content: bytes) -> Request | None:
        """The request that a whole command set makes; None where it is anything else."""
        accepted = self.association._accepted_cx.get(context)
        found = elements(content) if control == COMMAND | LAST else {}
        if accepted is None or found.get(FIELD) != C_STORE_REQUEST or found.get(DATA_SET) in (None, NO_DATA_SET):
            return None
        names = [found.get(tag, b"").rstrip(b"\0 ") for tag in (SOP_CLASS, SOP_INSTANCE)]
        narrow = 0 < (self.association.requestor.maximum_length or 0) < ROOM
        if narrow or len(found.get(MESSAGE, b"")) != 2 or not all(0 < len(name) <= LONGEST_UID for name in names):
            return None
        return Request(context, found[MESSAGE], names[0], names[1], str(accepted.transfer_syntax[0]).encode())


def fragments(pdu: bytes | bytearray) -> list[Fragment]:
    """The fragments of a P-DATA-TF PDU; none where it is damaged."""
    found: list[Fragment] = []
    at = HEADER
    while at + 6 <= len(pdu):
        length, context, control = struct.unpack_from(">IBB", pdu, at)
        end = at + 4 + length
        if length < 2 or end > len(pdu):
            return []
        found.append((context, control, bytes(memoryview(pdu)[at + 6 : end])))
        at = end
    return found if at == len(pdu) else []


def elements(command_set: bytes) -> dict[int, bytes]:
    """Element number -> value of a command set (PS3.7 section 6.3.1); empty for what is none."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 8 <= len(command_set):
        group, element, length = struct.unpack_from("<HHI", command_set, at)
        if group or at + 8 + length > len(command_set):
            return {}
        found[element] = command_set[at + 8 : at + 8 + length]
        at += 8 + length
    return found


def _even(value: bytes, padding: bytes = b"\0") -> bytes:
    return value + padding * (len(value) % 2)


def response(request: Request, status: int) -> bytes:
    """The P-DATA-TF PDU that holds the C-STORE-RSP."""
    values = {
        SOP_CLASS: _even(request.sop_class),
        FIELD: C_STORE_RESPONSE,
        ANSWERED: request.message,
        DATA_SET: NO_DATA_SET,
        STATUS: struct.pack("<H", status),
        SOP_INSTANCE: _even(request.sop_instance),
    }
    body = b"".join(struct.pack("<HHI", 0, tag, len(value)) + value for tag, value in values.items())
    body = struct.pack("<HHII", 0, 0, 4, len(body)) + body
    fragment = struct.pack(">IBB", len(body) + 2, request.context, COMMAND | LAST) + body
    return struct.pack(">BBI", P_DATA, 0, len(fragment)) + fragment


def file_head(request: Request) -> bytes:
    """Preamble, prefix and file meta information (PS3.10 section 7.1) of the data set that follows."""
    values = {
        2: (b"UI", _even(request.sop_class)),
        3: (b"UI", _even(request.sop_instance)),
        0x10: (b"UI", _even(request.syntax)),
        0x12: (b"UI", _even(PYNETDICOM_IMPLEMENTATION_UID.encode())),
        0x13: (b"SH", _even(PYNETDICOM_IMPLEMENTATION_VERSION.encode(), b" ")),
    }
    body = struct.pack("<HH2sHI", 2, 1, b"OB", 0, 2) + b"\0\1"
    body += b"".join(struct.pack("<HH2sH", 2, tag, kind, len(v)) + v for tag, (kind, v) in values.items())
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(body)) + body
