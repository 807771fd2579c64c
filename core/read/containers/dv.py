"""DV (IEC 61834): which of its frames hold what they should. Decoders make a picture of zeroed or shifted ones as well."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from usfmae.core.config.read import ReadSettings
from usfmae.core.read.ffmpeg import open_capture

SMALL, LARGE = 120_000, 144_000  # bytes of a frame of 480 rows, and of 576
IS_50_HZ = 0x80  # bit of the fourth byte of a frame: 576 rows
BLOCK, SEQUENCE = 80, 150  # bytes of a block, blocks of a sequence
# The section of each block of a sequence, which the upper three bits of its first byte state
HEADER, SUBCODE, EXTRA, AUDIO, VIDEO = range(5)
SECTIONS = np.array([HEADER, *[SUBCODE] * 2, *[EXTRA] * 3, *[AUDIO, *[VIDEO] * 15] * 9], np.uint8)


def whole_frames(descriptor: int) -> tuple[int, int]:
    """(frames, bytes) that are whole in a bare stream. FFmpeg fills up half a frame at its end out of the one before."""
    size = LARGE if os.pread(descriptor, 4, 0)[3] & IS_50_HZ else SMALL
    count = os.fstat(descriptor).st_size // size
    return count, count * size


def undamaged_frames(descriptor: int, settings: ReadSettings) -> int:
    """How many frames come before the first of another size, or of which a block is not what its place asks for."""
    packets = open_capture(descriptor, settings, undecoded=True)
    length = count = 0
    while packets.grab():
        packet = np.asarray(packets.retrieve()[1], np.uint8).ravel()
        length = length or len(packet)
        if len(packet) != length or len(packet) % (BLOCK * SEQUENCE) or not _is_undamaged(packet):
            break
        count += 1
    packets.release()
    return count


def _is_undamaged(packet: NDArray[np.uint8]) -> bool:
    return bool((packet[::BLOCK].reshape(-1, SEQUENCE) >> 5 == SECTIONS).all())
