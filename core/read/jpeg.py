"""JPEG, JPEG-LS and JPEG 2000 streams by their own markers, and whether a JPEG holds all of its picture (ITU T.81)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from usfmae.core.config.read import ReadSettings
from usfmae.core.read import ffmpeg
from usfmae.core.read.source import in_memory

SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), 0xC2  # SOF0, SOF1; SOF2
JPEG_LS_FRAME = 0xF7  # SOF55 (ITU T.87)
CODE_STREAM = b"\xff\x4f\xff\x51"  # SOC and SIZ of JPEG 2000, also within JP2 (ITU T.800 A.5.1)
BLOCK, UNCODED = 8, 128  # pixels of a block's side, and the gray that decoders fill absent blocks with


def _segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, body) of the segments of a JPEG stream before its samples (ITU T.81 B.1.1.4)."""
    place = 2
    while place + 4 <= len(stream) and stream[place] == 0xFF:
        length = int.from_bytes(stream[place + 2 : place + 4], "big")
        yield stream[place + 1], stream[place + 4 : place + 2 + length]
        place += 2 + length


def _is_frame(marker: int) -> bool:
    """Whether it starts a frame: SOF0 to SOF15 without DHT, JPG and DAC."""
    return 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)


def sample_precision(stream: bytes) -> int:
    """Bits of a sample of a JPEG stream, 0 where it does not say."""
    return next((body[0] for marker, body in _segments(stream) if _is_frame(marker) and body), 0)


def stream_format(stream: bytes) -> tuple[int, int]:
    """(samples a pixel, bits a sample) of a JPEG, JPEG-LS or JPEG 2000 stream by its own markers; 0 where none speaks."""
    if stream.startswith(b"\xff\xd8"):
        frames = (body for marker, body in _segments(stream) if _is_frame(marker) or marker == JPEG_LS_FRAME)
        return next(((body[5], body[0]) for body in frames if len(body) > 5), (0, 0))
    start = stream.find(CODE_STREAM, 0, 4096)
    size = stream[start + 40 : start + 43] if start >= 0 else b""
    return (int.from_bytes(size[:2], "big"), (size[2] & 0x7F) + 1) if len(size) == 3 else (0, 0)


def is_ybr(stream: bytes) -> bool | None:
    """Whether what a stream of three components decodes to is YCbCr, by its own markers; None where they do not say.

    JPEG: Adobe's transform flag decides, then JFIF (always YCbCr), then components called R, G, B, then sub-sampled
    chroma. JPEG 2000: decoders undo its own transform, which is one of RGB.
    """
    if not stream.startswith(b"\xff\xd8"):
        return False if _has_transform(stream) else None
    jfif = False
    for marker, body in _segments(stream):
        if marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
            return body[11] != 0
        jfif = jfif or (marker == 0xE0 and body[:4] == b"JFIF")
        if _is_frame(marker):
            return _by_components(body, jfif, lossy=marker in (*SEQUENTIAL, PROGRESSIVE))
    return None


def _has_transform(stream: bytes) -> bool:
    """Whether JPEG 2000 transformed its components (ITU T.800 A.6.1): the marker COD follows SIZ in the main header."""
    place = stream.find(CODE_STREAM, 0, 4096) + 2
    while place > 1 and stream[place : place + 1] == b"\xff" and stream[place + 1] not in (0x90, 0x52):
        place += 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
    return place > 1 and stream[place + 1 : place + 2] == b"\x52" and stream[place + 8 : place + 9] == b"\x01"


def _by_components(body: bytes, jfif: bool, lossy: bool) -> bool | None:
    if len(body) < 15 or body[5] != 3 or not lossy:
        return None
    names, factors = (body[6], body[9], body[12]), (body[7], body[10], body[13])
    if names in ((82, 71, 66), (114, 103, 98)):
        return False
    if jfif or len(set(factors)) > 1:
        return True
    return None


def is_whole(stream: bytes, samples: NDArray[Any]) -> bool:
    """Whether a JPEG stream holds all of the picture (H, W[, C]) that was decoded from it.

    Decoders fill what is absent with gray and say nothing where an end marker follows. Where the last block is of that
    gray, and where a picture comes in several scans, FFmpeg decodes it too, and its complaints decide.
    """
    frame = next((marker for marker, _ in _segments(stream) if _is_frame(marker)), 0)
    if frame not in (*SEQUENTIAL, PROGRESSIVE):
        return True
    rows, columns = ((size - 1) // BLOCK * BLOCK for size in samples.shape[:2])
    if frame in SEQUENTIAL and (samples[rows:, columns:] != UNCODED).any():
        return True
    with in_memory(stream) as descriptor:
        capture = ffmpeg.open_capture(descriptor, ReadSettings(), ffmpeg.JPEG)
        before = ffmpeg.complaints.damage
        decoded = capture.grab()
        capture.release()
    return decoded and ffmpeg.complaints.damage == before
