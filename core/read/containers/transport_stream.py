"""Transport streams (ISO 13818-1): how they are known, and where the last picture that is whole ends.

A stream states neither how many pictures it holds nor how long the last one is, and decoders of HEVC fill up half a
picture without a word. Writers fill up the last packet of a picture; one that is full to its end may have been followed
by another that was cut off.
"""

from __future__ import annotations

import os

PACKET, SYNC = 188, 0x47  # bytes of a packet, and the first of each (2.4.3.2)
TIME = 4  # bytes of time that AVCHD puts before each packet
STARTS, HAS_ADAPTATION, HAS_PAYLOAD = 0x40, 0x20, 0x10  # bits of the header of a packet
HEADER = 4  # bytes
CLOCKS = ((0x10, 6), (0x08, 6), (0x04, 1))  # (flag, bytes) of what an adaptation field may hold
OTHERS = 0x03  # flags of private data and of an extension, which state their own length
VIDEO = range(0xE0, 0xF0)  # stream_id of pictures (table 2-22)


def is_transport_stream(head: bytes) -> bool:
    """Three packets in a row, plain or as AVCHD recorders write them (.mts, .m2ts)."""
    return any(_begins(head, time) for time in (0, TIME))


def _begins(head: bytes, time: int) -> bool:
    sync_bytes = head[time :: PACKET + time]
    return len(sync_bytes) >= 3 and set(sync_bytes[:3]) == {SYNC}


def whole_end(descriptor: int) -> int:
    """The offset before which all pictures are whole: the size, or where a picture begins whose end is not known."""
    size = os.fstat(descriptor).st_size
    time = 0 if _begins(os.pread(descriptor, 3 * PACKET, 0), 0) else TIME
    step = PACKET + time
    is_filled: dict[int, bool] = {}  # by number of the stream: whether its last packet is filled up
    for start in range((size - 1) // step * step, -1, -step):
        packet = os.pread(descriptor, step, start)[time:]
        if len(packet) <= HEADER or packet[0] != SYNC or not packet[3] & HAS_PAYLOAD:
            continue
        stream = int.from_bytes(packet[1:3], "big") & 0x1FFF
        is_filled.setdefault(stream, _is_filled_up(packet))
        if packet[1] & STARTS and _is_video(packet):
            return size if is_filled[stream] else start
    return size


def _is_filled_up(packet: bytes) -> bool:
    """Whether bytes of a packet say nothing, because there was nothing more to say."""
    if len(packet) < PACKET or not packet[3] & HAS_ADAPTATION:
        return False
    length, flags = packet[4], packet[5]
    if length == 0 or flags == 0:
        return True
    return not flags & OTHERS and length > 1 + sum(size for flag, size in CLOCKS if flags & flag)


def _is_video(packet: bytes) -> bool:
    start = HEADER + (1 + packet[4] if packet[3] & HAS_ADAPTATION else 0)
    return (
        packet[start : start + 3] == b"\0\0\1" and packet[start + 3 : start + 4] != b"" and packet[start + 3] in VIDEO
    )
