"""Clips: mp4, mov, avi, mpeg, mkv, gif, through the FFmpeg in cv2. Frames are chosen by presentation time.

Only containers known by their first bytes reach the demuxer (no playlists), and it gets an open descriptor and no right
to open anything, so that a hostile clip cannot make it fetch another file. (cv2 crashes on damaged AVI in a stream object.)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

import cv2

from usfmae.core.config.read import ReadSettings
from usfmae.core.read.deinterlace import Deinterlacer, conversion
from usfmae.core.read.facts import Facts, Unreadable, check_size
from usfmae.core.read.raster import as_rgb
from usfmae.core.read.source import descriptor_of
from usfmae.core.read.timing import FrameSampler
from usfmae.core.types import Frame, Scan

# cv2 reads these when it opens a clip. Quiet, because FFmpeg's messages can quote what stands in a file.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
DEMUXERS = "avi,mov,mpeg,mpegvideo,mpegts,matroska,gif,asf,h264,hevc,dv"
OPTIONS = f"protocol_whitelist;fd|format_whitelist;{DEMUXERS}|fd;"
_opening = threading.Lock()  # cv2 takes its options out of the environment

SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".avi",
    ".mpg",
    ".mpeg",
    ".mkv",
    ".webm",
    ".gif",
    ".wmv",
    ".ts",
    ".mts",
    ".m2ts",
    ".vob",
    ".dv",
)
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")  # ISO 14496-12, QuickTime
MAGIC = (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x1aE\xdf\xa3", b"GIF8", b"0&\xb2u\x8ef\xcf\x11", b"\x1f\x07\x00")
PACKET, SYNC = 188, 0x47  # bytes of a packet of a transport stream, and the first of each (ISO 13818-1 2.4.3.2)
TIMED = 4  # bytes of time that AVCHD puts before each packet


def recognises(head: bytes) -> bool:
    if head[4:8] in BOXES or head.startswith(MAGIC) or is_transport_stream(head):
        return True
    return head.startswith(b"RIFF") and head[8:12] == b"AVI "


def is_transport_stream(head: bytes) -> bool:
    """Three packets in a row, plain or as AVCHD recorders write them (.mts, .m2ts)."""
    plain, timed = head[::PACKET], head[TIMED :: PACKET + TIMED]
    return any(len(sync_bytes) >= 3 and set(sync_bytes[:3]) == {SYNC} for sync_bytes in (plain, timed))


def container(head: bytes) -> str:
    """A short name of the container, for people."""
    if head[4:8] in BOXES:
        return "MOV" if head[8:10] == b"qt" or head[4:8] != b"ftyp" else "MP4"
    if is_transport_stream(head):
        return "MPEG-TS"
    names = {
        b"\x1f\x07\x00": "DV",
        b"\x00\x00\x01": "MPEG",
        b"\x1aE\xdf": "Matroska",
        b"GIF": "GIF",
        b"RIF": "AVI",
        b"0&\xb2": "WMV",
    }
    return names.get(head[:3], "video")


def open_capture(descriptor: int, settings: ReadSettings) -> cv2.VideoCapture:
    """A decoder on one thread of what a descriptor holds, with its picture size checked. Raises Unreadable."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    with _opening:
        os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = f"{OPTIONS}{descriptor}"
        capture = cv2.VideoCapture("fd:", cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        conversion.listen()
    if not capture.isOpened():
        raise Unreadable("unreadable", "no decodable video stream")
    width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    check_size(int(width), int(height), 1, settings)
    return capture


def facts(scan: Scan, settings: ReadSettings) -> Facts:
    with descriptor_of(scan, settings) as descriptor:
        name = container(os.pread(descriptor, 1024, 0))
        capture = open_capture(descriptor, settings)
        count, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
        capture.release()
    counted = rate > 0 and 0 < count <= settings.max_frames
    total = int(count) if counted else 1
    planned = max(1, round(total / max(rate, settings.fps) * settings.fps)) if counted else 1
    return Facts(name, total, planned)


def frames(
    scan: Scan, settings: ReadSettings, notes: set[str], failed: dict[int, str] | None = None
) -> Iterator[Frame]:
    """The kept frames in order; the others are stepped over without conversion. One frame in memory at a time."""
    with descriptor_of(scan, settings) as descriptor:
        for frame in decoded(descriptor, settings, notes, {} if failed is None else failed):
            yield replace(frame, trail=scan.trail)


def decoded(
    descriptor: int, settings: ReadSettings, notes: set[str], failed: dict[int, str], times: Sequence[float] = ()
) -> Generator[Frame, None, int]:
    """Frames of a clip at `settings.fps`; `times`, where a header states them, go before the stream's own.

    Its value is the number of frames that the stream holds, kept or not.
    Raises Unreadable where not one frame decodes.
    """
    capture = open_capture(descriptor, settings)
    size = (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
    fields = Deinterlacer(descriptor, size, settings)
    try:
        return (yield from _kept_frames(capture, fields, settings, notes, failed, times))
    finally:
        capture.release()
        fields.close()


def _kept_frames(
    capture: cv2.VideoCapture, fields: Deinterlacer, settings: ReadSettings,
    notes: set[str], failed: dict[int, str], times: Sequence[float],
) -> Generator[Frame, None, int]:  # fmt: skip
    sampler = FrameSampler(settings.fps)
    index, time, filled = -1, 0.0, False
    while capture.grab():
        index += 1
        time = times[index] if index < len(times) else _time(capture, index, time, settings, notes)
        if index >= settings.max_frames:
            raise Unreadable("too-many-frames", f"the limit is {settings.max_frames}")
        if not sampler.wants(time):
            continue
        before = conversion.failures
        decoded, pixels = capture.retrieve()
        if conversion.failures != before:  # it says it succeeded, and nothing was written into `pixels`
            picture = fields.frame(index)
            reason = "interlaced"
        else:
            picture = as_rgb(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)) if decoded and pixels is not None else None
            reason = "undecodable"
        if picture is None:
            failed[index] = reason
            continue
        filled = True
        if reason == "interlaced":
            notes.add("deinterlaced")
        yield Frame(picture, index=index, time=time)
    if not filled:
        reasons = set(failed.values())
        failed.clear()
        raise Unreadable("interlaced" if "interlaced" in reasons else "no-pixels", "not one frame could be decoded")
    return index + 1


def _time(capture: cv2.VideoCapture, index: int, last: float, settings: ReadSettings, notes: set[str]) -> float:
    """Presentation time in seconds; where a stream states none (or jumps back) the rate continues it."""
    stated = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0
    if index == 0:
        return 0.0
    if stated > last:
        return stated
    rate = capture.get(cv2.CAP_PROP_FPS)
    if not 0 < rate <= 1000:
        notes.add("default-rate")
        rate = settings.default_rate
    return last + 1.0 / rate
