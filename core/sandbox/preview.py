"""Inside the decoding process: one frame before and after cleaning, for the report's gallery and for who decides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np

from usfmae.core.config import Settings
from usfmae.core.errors import SourceError
from usfmae.core.read import read
from usfmae.core.read.raster import encode_png
from usfmae.core.sandbox.clean_unit import Emit, OpenScan, Sent, cleaned, frames_of
from usfmae.core.sandbox.records import Alive, Done, NoPicture, Picture, PreviewFrame, ShowFrame
from usfmae.core.types import CleanImage, Frame, Mask, Pixels, Quarantined, Scan

HEIGHT = 320  # pixels of a picture in the gallery, at most
RED = np.array([229, 72, 77])


def show_frame(request: ShowFrame, settings: Settings, answer: Emit) -> None:
    """Frame `index` of scan `wanted`, or its first that was kept where `index` is -1, as small PNGs."""
    scans = [OpenScan(scan) for scan in request.unit.scans]
    sent: Sent = []
    recorded: dict[int, Frame] = {}

    def remembered() -> Iterator[Frame]:
        for frame in frames_of(scans, sent, settings, answer):
            if sent[-1][0].scan.trail.id == request.wanted and request.index in (frame.index, -1):
                recorded[len(sent) - 1] = frame
            yield frame

    together = len(scans) > 1 or request.unit.clip
    for number, result in enumerate(cleaned(remembered(), settings, together, answer)):
        frame = recorded.pop(number, None)
        if frame is not None and (request.index >= 0 or isinstance(result, CleanImage)):
            answer(Picture("before"), encode_png(small(frame.pixels)))
            if isinstance(result, CleanImage):
                answer(Picture("mask"), encode_png(small(tinted(frame.pixels, result.mask))))
                answer(Picture("after"), encode_png(small(result.pixels)))
            break
    answer(Done())


def preview_frame(request: PreviewFrame, settings: Settings, answer: Emit) -> None:
    """One frame at full size, as far as cleaning goes, and the pixels that would be packed."""
    try:
        frame = _frame(request.scan, request.index, settings)
    except SourceError as error:
        answer(NoPicture(getattr(error, "reason", "no-such-frame")))
        answer(Done())
        return
    answer(Picture("before"), encode_png(frame.pixels, 1))
    answer(Alive("cleaning", 0))
    _preview_cleaned(frame, settings, answer)
    answer(Done())


def _preview_cleaned(frame: Frame, settings: Settings, answer: Emit) -> None:
    from usfmae.core.clean import cut_to_scan
    from usfmae.core.corpus.shard import square

    # Where header and picture disagree, a person looks at the picture.
    (result,) = cleaned(iter([replace(frame, regions=())]), settings, False, answer)
    image = result.image if isinstance(result, Quarantined) else result
    if image is None:
        assert isinstance(result, Quarantined)
        answer(NoPicture(result.reason))
        return
    answer(Picture("mask"), encode_png(tinted(frame.pixels, image.mask), 1))
    answer(Picture("after"), encode_png(image.pixels, 1))
    augment = settings.train.augment
    packed = square(
        cut_to_scan(image, settings.clean), settings.model.image_size, "", "", augment.resize, augment.aspect
    )
    answer(Picture("packed", packed.pixels.shape), packed.pixels.tobytes())


def _frame(scan: Scan, index: int, settings: Settings) -> Frame:
    for frame in read(scan, settings.read):
        if frame.index == index:
            return frame
    raise SourceError("this scan", f"has no frame {index}", "drop it")


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
