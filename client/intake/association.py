"""One association with a sender, from its request to its end, in a thread of its own (PS3.8 section 9).

Every PDU is read into one buffer, and an instance goes from there to its file, fragment after fragment: it is never
decoded, and however long it is, memory holds one PDU of it. "Success" is answered once the file has its name, which
outlives this process. A power cut is outlived by what was flushed: at every pause of the sender, after `BATCH`
instances, and before its release is answered. So a transfer that ended in order is on disk, and one that a power cut
broke has not ended in order.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import time
from collections.abc import Callable
from typing import Protocol

from usfmae.client.intake import dimse, negotiation
from usfmae.client.intake.spool import Incoming, Spool
from usfmae.core import log
from usfmae.core.config.sources import CstoreSettings
from usfmae.core.errors import ResourceError

logger = logging.getLogger(__name__)

REQUEST, REJECT, RELEASE, RELEASED, ABORT = 1, 3, 5, 6, 7  # types of PDU besides P-DATA-TF and the acceptance
SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700
UNEXPECTED, BROKEN = 2, 6  # reasons of an abort by the provider: a PDU out of place, a value that is none
PAUSE = 0.05  # seconds without a word, after which what came is flushed
BATCH = 512  # instances that are flushed together at most
LONGEST_COMMAND = 1 << 14  # bytes; a command set has a few hundred
SHORT = 1 << 12  # bytes that the system takes from us without waiting for the sender
ROOM = negotiation.LONGEST_PDU + (1 << 16)  # bytes of one PDU, and of what has come after it


class Ended(Exception):  # noqa: N818 - no error of ours: what a sender did
    """The association cannot go on: the reason of the A-ABORT that says so, None where nobody would hear it."""

    def __init__(self, reason: int | None, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class AssociationLink(Protocol):
    """The connection: what of a plain or a TLS socket is used."""

    def recv_into(self, buffer: memoryview) -> int: ...
    def sendall(self, data: bytes) -> None: ...
    def settimeout(self, value: float | None) -> None: ...
    def setsockopt(self, level: int, optname: int, value: int) -> None: ...


class Wire:
    """PDUs off a connection, each at most `patience` seconds after the one before; `paused` is called in a pause."""

    def __init__(self, link: AssociationLink, patience: float, paused: Callable[[], None]) -> None:
        self.link, self.patience, self.paused = link, patience, paused
        self.buffer = memoryview(bytearray(ROOM))
        self.start = self.end = 0
        self.waits = -1.0
        # Senders that write a PDU's header and body apart (DCMTK does) wait for the TCP acknowledgement between the two
        # (Nagle's algorithm), which Linux delays by 40 ms unless an answer carries it or it is asked for.
        self.unanswered = False

    def pdu(self) -> tuple[int, memoryview]:
        """Type and whole PDU, valid until the next call. Ended where the sender is gone or silent, or says too much."""
        until = time.monotonic() + self.patience
        self._have(dimse.HEADER, until)
        kind, length = struct.unpack_from(">BxI", self.buffer, self.start)
        if dimse.HEADER + length > ROOM:
            raise Ended(BROKEN, f"a PDU of {length} bytes")
        self._have(dimse.HEADER + length, until)
        whole = self.buffer[self.start : self.start + dimse.HEADER + length]
        self.start += dimse.HEADER + length
        return kind, whole

    def _have(self, count: int, until: float) -> None:
        while self.end - self.start < count:
            if self.start == self.end:
                self.start = self.end = 0
            elif self.start + count > ROOM:
                rest = bytes(self.buffer[self.start : self.end])
                self.buffer[: len(rest)] = rest
                self.start, self.end = 0, len(rest)
            self.end += self._received(until)

    def _received(self, until: float) -> int:
        """How many bytes came."""
        room = self.buffer[self.end :]
        try:
            if self.unanswered:
                self.link.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            self._wait(PAUSE)
            try:
                count = self.link.recv_into(room)
            except TimeoutError:
                self.paused()
                self._wait(max(until - time.monotonic(), 0.001))
                count = self.link.recv_into(room)
        except TimeoutError:
            raise Ended(0, "silent for too long") from None
        except OSError as error:
            raise Ended(None, type(error).__name__) from None
        if not count:
            raise Ended(None, "gone")
        self.unanswered = True
        return count

    def send(self, pdu: bytes) -> None:
        """Ended where the sender has gone, or does not listen."""
        try:
            if len(pdu) > SHORT:  # a short one always finds room
                self._wait(self.patience)
            self.link.sendall(pdu)
        except OSError as error:
            raise Ended(None, type(error).__name__) from None
        self.unanswered = False

    def _wait(self, seconds: float) -> None:
        """How long the next call may block; set only where it changes, as that takes a call to the system."""
        if seconds != self.waits:
            self.link.settimeout(seconds)
            self.waits = seconds


class Association:
    """A sender's requests, answered one after the other."""

    def __init__(
        self, link: AssociationLink, settings: CstoreSettings, spool: Spool, count: Callable[[str], None]
    ) -> None:
        self.settings, self.spool, self.count = settings, spool, count
        self.wire = Wire(link, settings.idle_seconds, self.settle)
        self.syntaxes: dict[int, str] = {}  # of the accepted presentation contexts
        self.longest = 0
        self.command = bytearray()
        self.request: dimse.StoreRequest | None = None
        self.incoming: Incoming | None = None
        self.refused = ""
        self.unsettled = 0  # instances that a power cut would take

    def run(self, has_place: Callable[[], bool]) -> None:
        """Until the sender has released, gone, or said something impossible."""
        try:
            if self._begins(has_place):
                while self._goes_on():
                    pass
        except Ended as end:
            only_looked = not self.syntaxes and end.reason is None  # whether the port is open: no word was said
            if not only_looked:
                log.note(logger, "association ended early", logging.WARNING, why=str(end))
            if end.reason is not None:
                with contextlib.suppress(Ended):
                    self.wire.send(struct.pack(">BxIxxBB", ABORT, 4, 2, end.reason))
        finally:
            self._discard()
            with contextlib.suppress(Ended):
                self.settle()

    def _begins(self, has_place: Callable[[], bool]) -> bool:
        kind, pdu = self.wire.pdu()
        if kind != REQUEST:
            raise Ended(UNEXPECTED, "it did not begin with a request")
        try:
            asked = negotiation.asked(bytes(pdu))
        except ValueError as error:
            raise Ended(BROKEN, f"a request that is none: {error}") from None
        no = negotiation.rejection(asked, self.settings) or (None if has_place() else negotiation.FULL)
        if no:
            self.count("rejected")
            why = negotiation.REASONS[no]
            log.note(logger, "association rejected", logging.WARNING, caller=asked.calling[:16], why=why)
            self.wire.send(struct.pack(">BxIxBBB", REJECT, 4, *no))
            return False
        answer, self.syntaxes = negotiation.acceptance(asked)
        self.longest = asked.longest
        self.wire.send(answer)
        return True

    def _goes_on(self) -> bool:
        kind, pdu = self.wire.pdu()
        if kind == dimse.P_DATA:
            try:
                for context, control, content in dimse.fragments(pdu[dimse.HEADER :]):
                    self._takes(context, control, content)
            except ValueError as error:
                raise Ended(BROKEN, str(error)) from None
            if self.unsettled >= BATCH:
                self.settle()
            return True
        if kind == RELEASE:
            self.settle()
            self.wire.send(struct.pack(">BxI4x", RELEASED, 4))
        elif kind != ABORT:
            raise Ended(UNEXPECTED, f"a PDU of type {kind}")
        return False

    def _takes(self, context: int, control: int, content: memoryview) -> None:
        """A fragment of a command set, or of the data set that it announced. ValueError where it is out of place."""
        if control & dimse.COMMAND:
            self.command += content
            if self.request or context not in self.syntaxes or len(self.command) > LONGEST_COMMAND:
                raise ValueError("a command out of place")
            if control & dimse.LAST:
                self._begin(dimse.request(context, bytes(self.command)))
                self.command.clear()
            return
        if self.request is None or context != self.request.context:
            raise ValueError("a data set without its command")
        self._keep_bytes(content)
        if control & dimse.LAST:
            self._finish(self.request)

    def _begin(self, request: dimse.StoreRequest) -> None:
        if not request.has_data:
            self.wire.send(dimse.response(request, SUCCESS, self.longest))
            return
        self.request, self.refused = request, ""
        self._unless_refused(self._open)
        self._keep_bytes(dimse.file_head(request, self.syntaxes[request.context]))

    def _open(self) -> None:
        self.incoming = self.spool.incoming()

    def _keep_bytes(self, content: bytes | memoryview) -> None:
        self._unless_refused(lambda: self.incoming.write(content) if self.incoming else None)

    def _unless_refused(self, act: Callable[[], object]) -> None:
        """The rest of an instance that was refused is read and dropped: only then can the sender hear why."""
        if self.refused:
            return
        try:
            act()
        except ResourceError as error:
            self.refused = error.why
            self._discard()

    def _discard(self) -> None:
        if self.incoming:
            self.incoming.discard()
        self.incoming = None

    def _finish(self, request: dimse.StoreRequest) -> None:
        self._unless_refused(lambda: self.incoming and self.count("stored" if self.incoming.keep() else "repeated"))
        self.request = self.incoming = None
        self.wire.send(dimse.response(request, OUT_OF_RESOURCES if self.refused else SUCCESS, self.longest))
        if self.refused:
            self.count("refused")
            log.note(logger, "instance refused", logging.WARNING, why=self.refused)
            return
        self.unsettled += 1

    def settle(self) -> None:
        """What was acknowledged is on disk. Ended where the disk fails, so that the transfer does not end in order."""
        if self.unsettled:
            try:
                self.spool.settle()
            except ResourceError as error:
                raise Ended(0, f"the disk failed: {error.why}") from None
            self.unsettled = 0
