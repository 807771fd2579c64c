"""Clips: mp4, mov, avi, mpeg, mkv, gif, through the FFmpeg in cv2. Frames are chosen by presentation time.

Only containers known by their first bytes reach the demuxer (no playlists). What a decoder complains of is not kept, and
what a container states and does not hold is counted. (cv2 crashes on damaged AVI in a stream object.)
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import cv2

from usfmae.core.config.read import ReadSettings
from usfmae.core.read.containers import dv, gif
from usfmae.core.read.containers.transport_stream import is_transport_stream, whole_end
from usfmae.core.read.deinterlace import Deinterlacer
from usfmae.core.read.facts import Facts, Unreadable
from usfmae.core.read.ffmpeg import complaints, open_capture
from usfmae.core.read.raster import as_rgb
from usfmae.core.read.source import copied, descriptor_of, in_memory
from usfmae.core.read.timing import FrameSampler
from usfmae.core.types import Frame, Scan

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
MOST_RATE = 1000  # frames a second that are believed
COUNTED = ("AVI", "MOV", "MP4")  # containers that state how many frames they hold
TIMED = ("Matroska", "WMV")  # that state how long they last
REORDERED = 16  # frames by which a decoder may hold a picture back: its complaint comes that much before the picture
STREAMED = ("MPEG-TS", "MPEG")  # that state neither


def recognises(head: bytes) -> bool:
    if head[4:8] in BOXES or head.startswith(MAGIC) or is_transport_stream(head):
        return True
    return head.startswith(b"RIFF") and head[8:12] == b"AVI "


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


def facts(scan: Scan, settings: ReadSettings) -> Facts:
    with descriptor_of(scan, settings) as descriptor:
        name = container(os.pread(descriptor, 1024, 0))
        capture = open_capture(descriptor, settings)
        count, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
        capture.release()
    seconds = count / rate if rate > 0 and count > 0 else 0.0
    planned = min(count, round(seconds * settings.fps))
    total = count if _is_plausible(count, rate, settings) else planned
    return Facts(name, max(1, int(total)), max(2, int(planned)))  # planned as a clip, whatever it turns out to hold


def _is_plausible(count: float, rate: float, settings: ReadSettings) -> bool:
    """FFmpeg gives a bare DV stream 60,000 frames a second, and a stream without an end a count below zero."""
    return 0 < rate <= MOST_RATE and 0 < count <= settings.max_frames


def frames(
    scan: Scan, settings: ReadSettings, notes: set[str], failed: dict[int, str] | None = None
) -> Iterator[Frame]:
    """The kept frames in order; the others are stepped over without conversion. One frame in memory at a time."""
    with descriptor_of(scan, settings) as descriptor:
        for frame in decoded(descriptor, settings, notes, {} if failed is None else failed):
            yield replace(frame, trail=scan.trail)


def decoded(
    descriptor: int, settings: ReadSettings, notes: set[str], failed: dict[int, str],
    times: Sequence[float] = (), stated: int = 0,
) -> Generator[Frame, None, int]:  # fmt: skip
    """Frames of a clip at `settings.fps`; `times` and the count `stated` by a header go before the stream's own.

    Its value is the number of frames that the stream holds, kept or not.
    Raises Unreadable where not one frame decodes.
    """
    name = container(os.pread(descriptor, 1024, 0))
    with _decodable(descriptor, name, settings) as (stream, is_cut):
        capture = open_capture(stream, settings)
        size = (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
        code = _code(capture)
        if code == "AV01":
            raise Unreadable("unsupported-av1", "AV1 is not decoded")
        by_size, _ = dv.whole_frames(stream) if name == "DV" else (0, 0)
        undamaged = None
        if code.startswith("DV"):
            undamaged = dv.undamaged_frames(stream, settings)
            capture = open_capture(stream, settings)  # anew: both read from one place in the file
        clip = _Clip(capture, name, settings, notes, times, stated or by_size)
        clip.is_cut, clip.undamaged = is_cut, undamaged
        fields = Deinterlacer(stream, size, settings)
        try:
            return (yield from _kept_frames(clip, fields, failed))
        finally:
            capture.release()
            fields.close()


@contextmanager
def _decodable(descriptor: int, name: str, settings: ReadSettings) -> Iterator[tuple[int, bool]]:
    """What the decoder gets of a file, and whether something was cut off its end."""
    size = os.fstat(descriptor).st_size
    end = size
    if name == "MPEG-TS":
        end = whole_end(descriptor)
    elif name == "DV":
        _, end = dv.whole_frames(descriptor)
    if name != "GIF" and end == size:
        yield descriptor, False
        return
    if size > settings.max_member_mb * 1e6:
        raise Unreadable("too-large", f"a copy exceeds {settings.max_member_mb:g} MB")
    if name == "GIF":
        data = os.pread(descriptor, size, 0)
        with in_memory(gif.opaque(data)) as stream:
            yield stream, not data.endswith(gif.END)
        return
    stream = copied(descriptor, end)
    try:
        yield stream, True
    finally:
        os.close(stream)


def _code(capture: cv2.VideoCapture) -> str:
    return int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=True).decode("latin-1").upper()


@dataclass
class _Clip:
    """A clip while its frames pass by: the time of each, which are asked for, and which can be trusted."""

    capture: cv2.VideoCapture
    container: str
    settings: ReadSettings
    notes: set[str]
    times: Sequence[float]
    stated: int
    index: int = -1
    time: float = 0.0
    is_damaged: bool = False
    is_cut: bool = False  # its end is absent
    undamaged: int | None = None  # frames before the first that is known to be damaged without decoding it
    skipped: dict[int, int] = field(default_factory=dict)  # frame -> how many were left out before it

    def __post_init__(self) -> None:
        self.sampler = FrameSampler(self.settings.fps)
        self.heard, self.damaged_at, self.first_damaged, self.step = complaints.damage, 0, -1, 0.0

    def next(self) -> bool:
        """Step to the next frame; False at the end. Raises Unreadable beyond the limit.

        After damage no frame is trusted until one that is coded on its own and was decoded later.
        """
        if not self.capture.grab():
            return False
        self.index += 1
        if self.index >= self.settings.max_frames:
            raise Unreadable("too-many-frames", f"the limit is {self.settings.max_frames}")
        before, self.time = self.time, self._time(self.index)
        if self.container in STREAMED and self.time > before:
            self._count_skipped(self.time - before)
        if complaints.damage != self.heard:
            self.heard, self.damaged_at, self.is_damaged = complaints.damage, self.index, True
        elif self.is_damaged and self.index > self.damaged_at + REORDERED:
            self.is_damaged = self.capture.get(cv2.CAP_PROP_FRAME_TYPE) != ord("I")
        if self.undamaged is not None and self.index >= self.undamaged:
            self.damaged_at, self.is_damaged = self.index, True
        if self.is_damaged and self.first_damaged < 0:
            self.first_damaged = self.index
        return True

    def _count_skipped(self, step: float) -> None:
        """The frames that are left out where the step from one to the next is longer than it was; half a frame is none."""
        self.step = min(step, self.step or step)
        if (skipped := int(step / self.step + 0.25) - 1) > 0:
            self.skipped[self.index] = min(skipped, REORDERED)

    def _time(self, index: int) -> float:
        """Presentation time in seconds; where a stream states none (or jumps back) the rate continues it."""
        if index < len(self.times):
            return self.times[index]
        stated = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0
        if index == 0:
            return 0.0
        return stated if stated > self.time else self.time + 1.0 / self._rate()

    def _rate(self) -> float:
        rate = self.capture.get(cv2.CAP_PROP_FPS)
        if not 0 < rate <= MOST_RATE:
            self.notes.add("default-rate")
            rate = self.settings.default_rate
        return rate

    def lost(self) -> dict[int, str]:
        """After the end: the frames that were to be kept and never came, each with the reason."""
        lost = {}
        if complaints.damage != self.heard:  # its last words: a picture that was given up, or a file that broke off
            lost[self.index + 1] = "damaged"
            self.first_damaged = self.index + 1 if self.first_damaged < 0 else self.first_damaged
        elif self.is_cut:
            lost[self.index + 1] = "truncated"
        for index in range(self.index + 1, self.index + 1 + self._absent()):
            self.time = self.times[index] if index < len(self.times) else self.time + 1.0 / self._rate()
            if self.sampler.wants(self.time):
                lost.setdefault(index, "missing-frame")
        return lost

    def _absent(self) -> int:
        """How many frames are stated and did not come."""
        there = self.index + 1
        if self.stated:
            return max(0, self.stated - there)
        if self.container in STREAMED:  # the pictures between the last ones come after them, and are cut off with them
            is_steady = all(index > self.index - REORDERED for index in self.skipped)
            return sum(self.skipped.values()) if is_steady else 0
        count, rate = self.capture.get(cv2.CAP_PROP_FRAME_COUNT), self.capture.get(cv2.CAP_PROP_FPS)
        if not _is_plausible(count, rate, self.settings) or self.container not in (*COUNTED, *TIMED):
            return 0
        return max(0, int(count) - (there if self.container in COUNTED else round(self.time * rate) + 1))


def _kept_frames(clip: _Clip, fields: Deinterlacer, failed: dict[int, str]) -> Generator[Frame, None, int]:
    kept = 0
    waiting: Frame | None = None
    for frame, is_mixed in _pictures(clip, fields, failed):
        settled = _settled(clip, waiting, failed) + ([] if is_mixed else [frame])
        waiting = frame if is_mixed else None
        kept += len(settled)
        yield from settled
    lost = clip.lost()
    settled = _settled(clip, waiting, failed)
    yield from settled
    failed.update(lost)
    if not kept + len(settled):
        reasons = set(failed.values())
        failed.clear()
        reason = next((one for one in ("interlaced", "damaged") if one in reasons), "no-pixels")
        raise Unreadable(reason, "not one frame could be decoded")
    return clip.index + 1


def _pictures(clip: _Clip, fields: Deinterlacer, failed: dict[int, str]) -> Iterator[tuple[Frame, bool]]:
    """The frames that are asked for and decode, and whether each is mixed with the one after it: deinterlacing does."""
    while clip.next():
        if not clip.sampler.wants(clip.time):
            continue
        unconverted = complaints.unconverted
        decoded, pixels = clip.capture.retrieve()
        is_interlaced = complaints.unconverted != unconverted  # it says it succeeded, and wrote nothing into `pixels`
        picture, reason = None, "undecodable"
        if clip.is_damaged or (is_interlaced and clip.first_damaged >= 0):  # the program may count otherwise from there
            reason = "damaged"
        elif is_interlaced:
            picture, reason = fields.frame(clip.index), "interlaced"
        elif decoded and pixels is not None:
            picture = as_rgb(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
        if picture is None:
            failed[clip.index] = reason
            continue
        if is_interlaced:
            clip.notes.add("deinterlaced")
        yield Frame(picture, index=clip.index, time=clip.time), is_interlaced


def _settled(clip: _Clip, waiting: Frame | None, failed: dict[int, str]) -> list[Frame]:
    """A frame that was mixed with the next, unless that one turned out to be damaged."""
    if waiting and waiting.index + 1 == clip.first_damaged:
        failed[waiting.index] = "damaged"
        return []
    return [waiting] if waiting else []
