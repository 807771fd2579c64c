"""The safe profile on a clip: what stands still over moving tissue is found once, then every frame is looked at.

Tissue moves and overlays do not: in the darkest value each pixel takes over the clip, ink stands alone. What is drawn
for part of the clip only is looked for in the sharpest detail that any cleaned frame shows, and by verifying the first,
middle and last frame as stills are. Where either finds something, every frame is cleaned as a still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import cv2
import numpy as np

from usfmae.core.clean import text, verify
from usfmae.core.clean.atlas import probability_within, windows_around
from usfmae.core.clean.colour import FAINT_CHROMA
from usfmae.core.clean.graphics import ridge
from usfmae.core.clean.inpaint import Planes, brightest_plane, fill, picture_of, planes_of
from usfmae.core.clean.morphology import bounds, changed, masked
from usfmae.core.clean.ocr import text_probability
from usfmae.core.clean.safe import overlay, safe, scan_region
from usfmae.core.clean.suspicion import Overlay, suspected
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import CleanImage, Frame, Pixels, Quarantined

Beat = Callable[[], object]

_SHORTEST = 4  # frames; fewer show too little motion
_REDUCED = 0.75
_MOTION = 2.0  # mean gray levels between the darkest and brightest value of the region's pixels


def windows(frames: Iterable[Frame], length: int) -> Iterator[list[Frame]]:
    """Runs of up to `length` timed frames of one shape, so that a long clip never lies in memory whole.

    Frames without a time are stills: what one of them shows says nothing of the next.
    """
    run: list[Frame] = []
    for frame in frames:
        if run and (len(run) == length or frame.time is None or frame.pixels.shape != run[0].pixels.shape):
            yield run
            run = []
        run.append(frame)
        if frame.time is None:
            yield run
            run = []
    if run:
        yield run


def extremes(frames: Sequence[Frame]) -> tuple[Pixels, Pixels]:
    """The darkest and the brightest value of each pixel over time, (H, W, 3) each."""
    darkest, brightest = frames[0].pixels.copy(), frames[0].pixels.copy()
    for frame in frames[1:]:
        cv2.min(darkest, frame.pixels, dst=darkest)
        cv2.max(brightest, frame.pixels, dst=brightest)
    return darkest, brightest


def appeared(crops: Sequence[Planes], settings: CleanSettings) -> bool:
    """Whether text stood in any of the cleaned crops, for however short a time."""
    sharpest = ridge(brightest_plane(crops[0]))
    for crop in crops[1:]:
        cv2.max(sharpest, ridge(brightest_plane(crop)), dst=sharpest)
    # Print of normal contrast is found as well at three quarters of its size, at half the cost.
    reduced = cv2.resize(cv2.merge([sharpest] * 3), None, fx=_REDUCED, fy=_REDUCED, interpolation=cv2.INTER_AREA)
    probability = text_probability(reduced.astype(np.uint8), settings.precision)
    return any(True for _ in text.boxes(probability, settings.text_threshold))


def _verified(crops: Sequence[Planes], seen: Overlay, settings: CleanSettings, words: Sequence[str]) -> bool:
    """Whether the first, middle and last cleaned crop show no text.

    The three go through the detector as the channels of one picture: what all three show is gray, what one shows is
    coloured, and both are found in one pass.
    """
    checked = [crops[index] for index in (0, len(crops) // 2, len(crops) - 1)]
    picture = cv2.merge([brightest_plane(crop) for crop in checked]).astype(np.uint8)
    probability = probability_within(picture, windows_around(seen.suspect), lambda seen: seen, settings.precision)
    filled = text.together(seen.words + seen.faint, seen.flow.shape)
    shown = (picture_of(crop) for crop in checked)
    if any(box.any() for crop in shown for _, box in verify.left(crop, probability, filled, settings, words)):
        return False
    return not appeared(crops, settings)


def _together(frames: Sequence[Frame], settings: CleanSettings, beat: Beat) -> list[CleanImage | Quarantined] | None:
    """The frames cleaned with one overlay mask, or None where they must be cleaned one by one."""
    darkest, brightest = extremes(frames)
    found = scan_region(Frame(brightest, frames[0].trail, regions=frames[0].regions), settings)
    if isinstance(found, Quarantined):
        return None
    inside, cut = found
    rows, columns = bounds(inside)
    motion = cv2.absdiff(brightest[rows, columns], darkest[rows, columns])
    if motion.mean() < _MOTION:
        return None
    beat()
    here = np.ascontiguousarray(inside[rows, columns])
    dark = masked(np.ascontiguousarray(darkest[rows, columns]), here)
    still = overlay(dark, here, settings)
    drawn = still.drawn & here
    if cut + suspected(dark, drawn, still, settings) > settings.most_suspected:
        return None
    beat()
    crops = [planes_of(masked(np.ascontiguousarray(frame.pixels[rows, columns]), here), drawn) for frame in frames]
    fill(crops, drawn, settings.inpaint_radius, FAINT_CHROMA)
    beat()
    if not _verified(crops, still, settings, frames[0].words):
        return None
    beat()
    notes = {"region": round(float(inside.mean()), 4), "together": len(frames)}
    results: list[CleanImage | Quarantined] = []
    for frame, crop in zip(frames, crops, strict=True):
        pixels = np.zeros_like(frame.pixels)
        pixels[rows, columns] = picture_of(crop)  # black outside the region, as it was before the ink was filled
        results.append(CleanImage(pixels, changed(pixels, frame.pixels), frame.trail, notes))
    return results


def safe_clip(frames: Iterable[Frame], settings: CleanSettings, beat: Beat) -> Iterator[CleanImage | Quarantined]:
    """One result for each frame, in order."""
    for run in windows(frames, settings.clip_window):
        results = _together(run, settings, beat) if len(run) >= _SHORTEST else None
        yield from results if results is not None else (safe(frame, settings) for frame in run)
