"""The safe profile on a clip: what stands still over moving tissue is found once, then every frame is looked at.

Tissue moves and overlays do not: in the darkest value each pixel takes over the clip, ink stands alone. What is drawn
for part of the clip only, or moves, is looked for in every cleaned frame; frames that show text are cleaned as stills,
and where they are many, all are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import cv2
import numpy as np

from usfmae.core.clean import text
from usfmae.core.clean.colour import FAINT_CHROMA
from usfmae.core.clean.foreign import foreign, may_show_face
from usfmae.core.clean.inpaint import Planes, brightest_plane, fill, picture_of, planes_of
from usfmae.core.clean.morphology import bounds, changed, channel_difference, masked
from usfmae.core.clean.ocr import Probability, text_probability
from usfmae.core.clean.overlay_net import coloured_text_probability, large_text_probability, overlay_probability
from usfmae.core.clean.safe import crop_of, safe, scan_region, seen_in
from usfmae.core.clean.verify import lit_of, suspected
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import CleanImage, Frame, Mask, Pixels, Quarantined

Beat = Callable[[], object]

_SHORTEST = 4  # frames; fewer show too little motion
_LIT = 24  # gray levels
_LARGE, _SMALLER = 320, 0.75  # pixels of the shorter side of a large frame; of its size at which it is looked at
_MOTION = 2.0  # mean gray levels between the darkest and brightest value of the region's pixels
_FEW, _BESIDE = 0.1, 1  # share of frames that may be cleaned as stills alone; frames on either side that are with them


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


def shows_text(crop: Planes, filled: Mask) -> bool:
    """Whether text stands in a cleaned crop, wherever and however short, but in what was filled (H, W).

    The overlay network looks at every frame whole: a name that moves, or stands in one frame alone, is as clear there as
    in a still.
    """
    return any(text.sees_text(view, filled, smallest) for view, smallest in views_of(crop))


def shows_other_print(crops: Sequence[Planes], filled: Mask, settings: CleanSettings) -> bool:
    """Whether the general detector sees text in the first, middle or last of the cleaned crops but in what was filled
    (H, W): it knows other scripts and sizes, and dark print. The three are the channels of one picture: bright print in
    one pass, dark print in another.
    """
    middle = [brightest_plane(crop) for crop in (crops[0], crops[len(crops) // 2], crops[-1])]
    for frames in (middle, [cv2.bitwise_not(gray).astype(np.uint8) for gray in middle]):
        together = cv2.merge([text.sharpened(gray) for gray in frames]).astype(np.uint8)
        probability = text_probability(together, settings.precision)
        if any(not text.is_fill(filled, box) for box in text.boxes(probability, settings.text_threshold)):
            return True
    return False


def alone(doubted: Sequence[bool]) -> list[bool] | None:
    """Which frames of a clip are cleaned as stills where some are `doubted`: those and the ones beside them; None where so
    many are that all must be. What is burnt in and moves is seen in nearly every frame that shows it; tissue that looks
    like print for a moment is not."""
    if sum(doubted) > _FEW * len(doubted):
        return None
    return [any(doubted[max(0, i - _BESIDE) : i + _BESIDE + 1]) for i in range(len(doubted))]


def views_of(crop: Planes) -> Iterator[tuple[Probability, int]]:
    """The overlay network's probabilities of text (H, W) in a frame, as it is, smaller, and in its colours, each with the
    pixels of the smallest text.

    A large frame is seen at three quarters of its size: print of ten pixels is still print there, and a frame takes half
    the time.
    """
    bright = brightest_plane(crop)
    if min(bright.shape) < _LARGE:
        yield overlay_probability(bright)[0], text.SMALLEST_DRAWN
    else:
        small = cv2.resize(bright, None, fx=_SMALLER, fy=_SMALLER, interpolation=cv2.INTER_AREA).astype(np.uint8)
        seen = cv2.resize(overlay_probability(small)[0], bright.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        yield seen.astype(np.float32, copy=False), text.SMALLEST_DRAWN
    yield large_text_probability(bright), text.SMALLEST_LARGE
    if len(crop) == 3:
        yield coloured_text_probability(channel_difference(picture_of(crop)), bright > _LIT), text.SMALLEST_DRAWN


def _together(frames: Sequence[Frame], settings: CleanSettings, beat: Beat) -> list[CleanImage | Quarantined] | None:
    """The frames cleaned with one overlay mask, or None where they must be cleaned one by one."""
    # The region of all frames, and how much moves in it.
    darkest, brightest = extremes(frames)
    scan = scan_region(Frame(brightest, frames[0].trail, regions=frames[0].regions), settings)
    if isinstance(scan, Quarantined):
        return None
    inside, cut = scan
    rows, columns = bounds(inside)
    motion = cv2.absdiff(brightest[rows, columns], darkest[rows, columns])
    if motion.mean() < _MOTION:
        return None
    beat()
    # What stands still over the moving tissue.
    here = np.ascontiguousarray(inside[rows, columns])
    dark = masked(np.ascontiguousarray(darkest[rows, columns]), here)
    crop, ownly_coloured = crop_of(dark, here, frames[0].words)
    first, middle, last = (
        masked(np.ascontiguousarray(frames[number].pixels[rows, columns]), here)
        for number in (0, len(frames) // 2, len(frames) - 1)
    )
    if any(foreign(shown, here, ownly_coloured) is not None for shown in (middle, first, last)):
        return None
    finding, _ = seen_in(crop, settings)
    drawn = finding.mask
    lit = lit_of(middle)
    if (
        finding.unread
        or (drawn & lit).sum() > settings.most_filled * lit.sum()
        or cut + suspected(dark, drawn, finding, settings) > settings.most_suspected
    ):
        return None
    beat()
    # Filled in every frame, and every frame verified.
    crops = [planes_of(masked(np.ascontiguousarray(frame.pixels[rows, columns]), here), drawn) for frame in frames]
    faces = [may_show_face(picture_of(crop)) for crop in crops]
    fill(crops, drawn, settings.inpaint_radius, FAINT_CHROMA)
    beat()
    stills = alone([face or shows_text(crop, drawn) for face, crop in zip(faces, crops, strict=True)])
    if stills is None or shows_other_print(crops, drawn, settings):
        return None
    beat()
    notes = {"region": round(float(inside.mean()), 4), "together": len(frames)}
    results: list[CleanImage | Quarantined] = []
    for frame, planes, still in zip(frames, crops, stills, strict=True):
        if still:
            beat()
            results.append(safe(frame, settings))
            continue
        pixels = np.zeros_like(frame.pixels)
        pixels[rows, columns] = picture_of(planes)  # black outside the region, as it was before the ink was filled
        results.append(CleanImage(pixels, changed(pixels, frame.pixels), frame.trail, notes))
    return results


def safe_clip(frames: Iterable[Frame], settings: CleanSettings, beat: Beat) -> Iterator[CleanImage | Quarantined]:
    """One result for each frame, in order."""
    for run in windows(frames, settings.clip_window):
        results = _together(run, settings, beat) if len(run) >= _SHORTEST else None
        yield from results if results is not None else (safe(frame, settings) for frame in run)
