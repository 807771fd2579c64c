"""Interlaced clips, as recorders of ultrasound machines write them (MPEG-2, H.264, DV, AVCHD).

The FFmpeg in cv2 from 4.13 on cannot convert an interlaced frame to RGB, which only its log says (`ffmpeg.py`). Such
frames are decoded by the `ffmpeg` program where it is installed, else they are kept back.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import numpy as np

from usfmae.core.config.read import ReadSettings
from usfmae.core.read.source import copied
from usfmae.core.types import Pixels


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
        program, size = shutil.which("ffmpeg"), os.fstat(self.descriptor).st_size
        if program is None or size > self.limit:
            return False
        clip = copied(
            self.descriptor, size
        )  # the program opens a name, and a decoding process may open no file but its own memory
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
