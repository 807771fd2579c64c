"""Inside the decoding process: one frame of a unit before and after cleaning, small, for the report's gallery."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from usfmae.core.config import Settings
from usfmae.core.read.raster import encode_png
from usfmae.core.sandbox.clean_unit import Emit, OneScan, cleaned, frames_of, scan_of
from usfmae.core.types import CleanImage, Frame, Mask, Pixels, Quarantined

HEIGHT = 320  # pixels of a picture in the gallery, at most
RED = np.array([229, 72, 77])


def show(header: dict[str, Any], settings: Settings, secret: bytes, emit: Emit) -> None:
    """Frame `index` of scan `wanted`, or its first that was kept where `index` is -1, as PNGs."""
    scans = [OneScan(scan_of(values)) for values in header["scans"]]
    sent: list[tuple[OneScan, Frame]] = []
    recorded: dict[int, Frame] = {}

    def remembered() -> Iterator[Frame]:
        for frame in frames_of(scans, sent, settings, emit):
            if sent[-1][0].scan.trail.id == header["wanted"] and header["index"] in (frame.index, -1):
                recorded[len(sent) - 1] = frame
            yield frame

    together = len(scans) > 1 or bool(header["clip"])
    for number, result in enumerate(cleaned(remembered(), settings, together, emit)):
        frame = recorded.pop(number, None)
        if frame is not None and (header["index"] >= 0 or isinstance(result, CleanImage)):
            _emit_pictures(frame, result, emit)
            break
    emit(event="done")


def _emit_pictures(frame: Frame, result: CleanImage | Quarantined, emit: Emit) -> None:
    emit(encode_png(small(frame.pixels)), event="picture", name="before")
    if isinstance(result, CleanImage):
        emit(encode_png(small(tinted(frame.pixels, result.mask))), event="picture", name="mask")
        emit(encode_png(small(result.pixels)), event="picture", name="after")


def tinted(pixels: Pixels, mask: Mask) -> Pixels:
    """The picture (H, W, 3) with the masked pixels in red."""
    mixed = pixels.copy()
    mixed[mask] = (mixed[mask] * 0.35 + RED * 0.65).astype(np.uint8)
    return mixed


def small(pixels: Pixels) -> Pixels:
    """At most HEIGHT pixels high and twice as wide."""
    scale = min(1.0, HEIGHT / pixels.shape[0], 2 * HEIGHT / pixels.shape[1])
    if scale == 1.0:
        return pixels
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
