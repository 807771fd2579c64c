"""A cine of a thousand frames never lies in memory whole, however it is coded."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate

pytestmark = pytest.mark.slow
MakeDicom = Callable[..., Path]
FRAMES = 1000
MIB = 60  # that may be added while all frames pass; the smallest cine below has 220 MiB
READER = """
import resource, sys
from pathlib import Path
from usfmae.core.config import ReadSettings
from usfmae.core.read import identify, read
from usfmae.core.read.discover import Candidate
settings = ReadSettings(fps=1000)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scan = identify(Candidate.of(Path(sys.argv[1])), b"s" * 32, settings).scan
first, count = 0, 0
for frame in read(scan, settings):
    count += 1
    first = first or peak()
print(count, (peak() - first) / 1024)
"""


def frames_and_growth(path: Path) -> tuple[int, float]:
    """Frames read, and MiB that the process grew by after the first of them."""
    done = subprocess.run([sys.executable, "-c", READER, path], capture_output=True, text=True, check=True, timeout=120)
    count, growth = done.stdout.split()
    return int(count), float(growth)


@pytest.mark.parametrize("meta", [True, False], ids=["meta", "bare"])
def test_uncompressed(make_dicom: MakeDicom, meta: bool) -> None:
    path = make_dicom(np.zeros((1, 480, 640, 3), np.uint8), NumberOfFrames=FRAMES, FrameTime=33.3)
    data = path.read_bytes()
    start = data.rindex(struct.pack("<HH2s", 0x7FE0, 0x0010, b"OB"))
    size = FRAMES * 480 * 640 * 3
    with path.open("wb") as file:
        file.write(data[0 if meta else data.index(b"\x08\x00\x16\x00") : start + 8] + struct.pack("<I", size))
        file.truncate(file.tell() + size)  # a sparse file: zeros that take no disk
    count, growth = frames_and_growth(path)
    assert count == FRAMES
    assert growth < MIB


def test_encapsulated(make_dicom: MakeDicom) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 240, 320, 3), dtype=np.uint8)
    path = make_dicom(noise)
    ds = pydicom.dcmread(path)
    ds.compress(uid.RLELossless, generate_instance_uid=False)
    (one,) = pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)
    ds.NumberOfFrames, ds.FrameTime = FRAMES, "33.3"
    ds.PixelData = encapsulate([one] * FRAMES)
    ds.save_as(path)
    assert path.stat().st_size > 200_000_000
    count, growth = frames_and_growth(path)
    path.unlink()
    assert count == FRAMES
    assert growth < MIB


def test_film(tmp_path: Path) -> None:
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30, (320, 240))
    for number in range(FRAMES):
        writer.write(np.full((240, 320, 3), number % 256, np.uint8))
    writer.release()
    count, growth = frames_and_growth(path)
    assert count == FRAMES
    assert growth < MIB
