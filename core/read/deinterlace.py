"""Interlaced clips, as recorders of ultrasound machines write them (MPEG-2, H.264, DV, AVCHD).

The FFmpeg in cv2 from 4.13 on cannot convert an interlaced frame to RGB. cv2 does not look at that and hands out a
buffer that nothing filled: black, heap bytes, or the last scan. FFmpeg says so in its log alone, which is listened to
here. Such frames are decoded by the `ffmpeg` program where it is installed, else
they are kept back.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from usfmae.core.config.read import ReadSettings
from usfmae.core.errors import ResourceError
from usfmae.core.types import Pixels

AV_LOG_ERROR = 16
CONVERTER = b"SWScaler"  # the class name of FFmpeg's converter of pictures (libswscale)
LOG = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class Conversion:
    """Counts conversions of pictures that failed, from the log of the FFmpeg that cv2 brings along."""

    def __init__(self) -> None:
        self.failures = 0
        self.library: ctypes.CDLL | None = None
        self.callback = LOG(self._heard)

    def listen(self) -> None:
        """Called after each opening of a clip: cv2 sets a log of its own with the first.

        ResourceError where the FFmpeg in use cannot be found: its frames could not be trusted.
        """
        if self.library is None:
            self.library = ctypes.CDLL(_loaded("libavutil"))
        self.library.av_log_set_callback(self.callback)

    def _heard(self, context: int | None, level: int, _text: bytes, _arguments: Any) -> None:
        """`context` points to an object whose first field points to its class, whose first field is the name."""
        if level <= AV_LOG_ERROR and context:
            class_ = ctypes.c_void_p.from_address(context).value
            if class_ and ctypes.c_char_p.from_address(class_).value == CONVERTER:
                self.failures += 1


def _loaded(name: str) -> str:
    """The path of a library that is loaded into this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith(name):
            return path
    raise ResourceError("OpenCV", "comes without an FFmpeg of its own", "pip install opencv-python")


conversion = Conversion()


class Deinterlacer:
    """Frames of a clip through the `ffmpeg` program, one picture of each pair of fields. Started when first needed."""

    def __init__(self, descriptor: int, size: tuple[int, int], settings: ReadSettings) -> None:
        self.descriptor, self.size = descriptor, size
        self.limit = int(settings.max_member_mb * 1e6)
        self.process: subprocess.Popen[bytes] | None = None
        self.next = 0

    def frame(self, index: int) -> Pixels | None:
        """Frame `index` as (H, W, 3) RGB, in ascending order; None without the program or where it gives none."""
        if self.process is None and not self._start():
            return None
        picture = None
        while self.next <= index:
            picture = self._read()
            if picture is None:
                return None
            self.next += 1
        return picture

    def _start(self) -> bool:
        program = shutil.which("ffmpeg")
        if program is None or os.fstat(self.descriptor).st_size > self.limit:
            return False
        clip = self._copied()  # the program opens a name, and a decoding process may open no file but its own memory
        width, height = self.size
        command = [
            program, "-v", "quiet", "-nostdin", "-noautorotate", "-protocol_whitelist", "file", "-threads", "1",
            "-i", f"/proc/self/fd/{clip}", "-map", "0:v:0", "-fps_mode", "passthrough",
            "-vf", "bwdif=mode=send_frame:deint=interlaced", "-s", f"{width}x{height}",
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-threads", "1", "-",
        ]  # fmt: skip
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=[clip]
            )
        except OSError:
            return False
        finally:
            os.close(clip)
        return True

    def _copied(self) -> int:
        clip, size, offset = os.memfd_create("clip", 0), os.fstat(self.descriptor).st_size, 0
        while offset < size and (sent := os.sendfile(clip, self.descriptor, offset, size - offset)):
            offset += sent
        return clip

    def _read(self) -> Pixels | None:
        assert self.process is not None and self.process.stdout is not None
        width, height = self.size
        data = self.process.stdout.read(width * height * 3)
        if len(data) < width * height * 3:
            return None
        return np.frombuffer(data, np.uint8).reshape(height, width, 3).copy()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            if self.process.stdout:
                self.process.stdout.close()
            self.process.wait()
