"""The FFmpeg that cv2 brings along: what a descriptor holds is opened, and what FFmpeg complains of is listened to.

cv2 does not pass on whether a picture was decoded whole or converted at all. Where it was not, cv2 says that it was read,
and hands out half a picture, or a buffer that nothing filled: black, heap bytes, or the last scan. FFmpeg's log alone
tells. It gets an open descriptor and no right to open anything, so that no file can make it fetch another.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from typing import Any

import cv2

from usfmae.core.config.read import ReadSettings
from usfmae.core.errors import ResourceError
from usfmae.core.read.facts import Unreadable, check_size

# cv2 reads these when it opens a clip. Quiet, because FFmpeg's messages can quote what stands in a file.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
CLIPS = "avi,mov,mpeg,mpegvideo,mpegts,matroska,gif,asf,h264,hevc,dv"
JPEG = "jpeg_pipe"
_opening = threading.Lock()  # cv2 takes its options out of the environment

LEVEL_ERROR, LEVEL_WARNING = 16, 24
LOG = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
CONVERTER, CODEC, CONTAINER = b"SWScaler", b"AVCodecContext", b"AVFormatContext"  # names of FFmpeg's classes
# Warnings of a codec and of a container that are no less than errors: scans of a JPEG or bytes of a packet are absent.
GRAVE = {CODEC: b"component %d is incomplete", CONTAINER: b"Packet corrupt"}


class Complaints:
    """Counts what FFmpeg's log says went wrong in this process."""

    def __init__(self) -> None:
        self.unconverted = 0  # pictures that were not turned into RGB
        self.damage = 0  # errors of decoders and of containers
        self.library: ctypes.CDLL | None = None
        self.callback = LOG(self._heard)

    def listen(self) -> None:
        """Called after each opening: cv2 sets a log of its own with the first.

        ResourceError where the FFmpeg in use cannot be found: its frames could not be trusted.
        """
        if self.library is None:
            self.library = ctypes.CDLL(_loaded("libavutil"))
        self.library.av_log_set_callback(self.callback)

    def _heard(self, context: int | None, level: int, text: bytes | None, _arguments: Any) -> None:
        """`context` points to an object whose first field points to its class, whose first field is the name."""
        if level > LEVEL_WARNING or not context:
            return
        class_ = ctypes.c_void_p.from_address(context).value
        name = ctypes.c_char_p.from_address(class_).value if class_ else None
        if level > LEVEL_ERROR and not (name in GRAVE and (text or b"").startswith(GRAVE[name])):
            return
        self.unconverted += name == CONVERTER
        self.damage += name in GRAVE


def _loaded(name: str) -> str:
    """The path of a library that is loaded into this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith(name):
            return path
    raise ResourceError("OpenCV", "comes without an FFmpeg of its own", "pip install opencv-python")


complaints = Complaints()


def open_capture(
    descriptor: int, settings: ReadSettings, formats: str = CLIPS, undecoded: bool = False
) -> cv2.VideoCapture:
    """A decoder on one thread of what a descriptor holds, with its picture size checked. Raises Unreadable.

    `undecoded` gives the packets of the stream as they are written.
    """
    os.lseek(descriptor, 0, os.SEEK_SET)
    with _opening:
        options = f"protocol_whitelist;fd|format_whitelist;{formats}|fd;{descriptor}"
        os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = options
        capture = cv2.VideoCapture(
            "fd:", cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1, *([cv2.CAP_PROP_FORMAT, -1] if undecoded else [])]
        )
        del os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"]  # they are of this descriptor alone
        complaints.listen()
    if not capture.isOpened():
        raise Unreadable("unreadable", "no decodable video stream")
    width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    check_size(int(width), int(height), 1, settings)
    return capture
