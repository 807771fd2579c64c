"""Messages between `prepare` and its decoding processes: a JSON header and raw bytes, both length-prefixed.

No pickle: what comes out of a process that decodes hostile files is data, never code.
"""

from __future__ import annotations

import json
import struct
from typing import IO, Any

LENGTHS = struct.Struct(">II")
LARGEST = 64 << 20  # bytes of one part; an answer beyond it is treated as a broken process

Message = tuple[dict[str, Any], bytes]


def send(stream: IO[bytes], header: dict[str, Any], blob: bytes = b"") -> None:
    text = json.dumps(header).encode()
    stream.write(LENGTHS.pack(len(text), len(blob)) + text + blob)
    stream.flush()


def receive(stream: IO[bytes]) -> Message | None:
    """The next message, None at the end of the stream. Blocking; for the decoding side."""
    prefix = stream.read(LENGTHS.size)
    if len(prefix) < LENGTHS.size:
        return None
    text, blob = LENGTHS.unpack(prefix)
    return json.loads(stream.read(text)), stream.read(blob)


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
        header = json.loads(self.buffer[LENGTHS.size : LENGTHS.size + text])
        content = bytes(self.buffer[LENGTHS.size + text : end])
        del self.buffer[:end]
        if not isinstance(header, dict):
            raise ValueError("header is no object")
        return header, content
