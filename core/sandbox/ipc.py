"""Messages between a worker and its decoding process: a JSON header and raw bytes, both length-prefixed.

No pickle: what comes out of a process that decodes hostile files is data, never code. Requests go over a socket, since
open files travel with them; answers come through a pipe.
"""

from __future__ import annotations

import socket
import struct
from array import array
from typing import IO

LENGTHS = struct.Struct(">II")
LARGEST = 64 << 20  # bytes of one part; an answer beyond it is treated as a broken process

Message = tuple[bytes, bytes]


def send(stream: IO[bytes], header: bytes, blob: bytes = b"") -> None:
    stream.write(LENGTHS.pack(len(header), len(blob)) + header + blob)
    stream.flush()


def send_request(wire: socket.socket, header: bytes, descriptor: int | None = None) -> None:
    """A request, and an open file with it."""
    prefix = LENGTHS.pack(len(header), 0)
    files = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))]
    wire.sendmsg([prefix], files)
    wire.sendall(header)


def receive_request(wire: socket.socket) -> tuple[bytes, int | None] | None:
    """The next request and the descriptor that came with it; None at the end of the stream. Blocking."""
    prefix, files, _, _ = wire.recvmsg(LENGTHS.size, socket.CMSG_SPACE(4), socket.MSG_WAITALL | socket.MSG_CMSG_CLOEXEC)
    if len(prefix) < LENGTHS.size:
        return None
    descriptors = array("i", b"".join(data[:4] for _, kind, data in files if kind == socket.SCM_RIGHTS))
    length, _ = LENGTHS.unpack(prefix)
    header = bytearray()
    while len(header) < length and (data := wire.recv(length - len(header))):
        header += data
    return bytes(header), descriptors[0] if descriptors else None


class Inbox:
    """Puts arriving bytes together into messages; for the supervising side, which must never block."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def add(self, data: bytes) -> None:
        self.buffer += data

    def next(self) -> Message | None:
        """The next complete message, if there is one. ValueError where the peer does not speak the format."""
        if len(self.buffer) < LENGTHS.size:
            return None
        text, blob = LENGTHS.unpack_from(self.buffer)
        if max(text, blob) > LARGEST:
            raise ValueError("message too large")
        end = LENGTHS.size + text + blob
        if len(self.buffer) < end:
            return None
        header = bytes(self.buffer[LENGTHS.size : LENGTHS.size + text])
        content = bytes(self.buffer[LENGTHS.size + text : end])
        del self.buffer[:end]
        return header, content
