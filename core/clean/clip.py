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
from usfmae.core.clean.finding import Crop
from usfmae.core.clean.foreign import may_show_faces, no_speckle
from usfmae.core.clean.inpaint import Planes, brightest_plane, fill, picture_of, planes_of
from usfmae.core.clean.morphology import bounds, brightest_of, changed, channel_difference, components, masked
from usfmae.core.clean.ocr import Probability
from usfmae.core.clean.overlay_net import SMALLER, coloured_text_probability, text_seen_at
from usfmae.core.clean.safe import crop_of, safe, scan_region, seen_in
from usfmae.core.clean.verify import left, lit_of, suspected
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import CleanImage, Frame, Mask, Pixels, Quarantined

Beat = Callable[[], object]

_SHORTEST = 4  # frames; fewer show too little motion
_LIT = 24  # gray levels
_MOTION = 2.0  # mean gray levels between the darkest and brightest value of the region's pixels
_PASSES = (
    2.2  # a find that differs from the usual frame by so many times what tissue does, on average, stands in no frame
)
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


def tracks(drawn: Mask, darkest: Pixels, shown: Sequence[Pixels]) -> Mask:
    """The parts (H, W) of what was found in the darkest values over time that stand in none of the frames: where something
    dark passed, which each frame shows at another place. `shown` are some frames spread over the clip, all (H, W, 3)."""
    usual = np.median(np.stack([brightest_of(pixels) for pixels in shown]), axis=0)
    above = np.maximum(usual - brightest_of(darkest), 0)
    passed = np.zeros(drawn.shape, bool)
    for window, part in components(drawn):
        passed[window] |= part & (above[window][part].mean() > _PASSES * above.mean())
    return passed


def show_text(crops: Sequence[Planes], filled: Mask) -> list[bool]:
    """In which of the cleaned crops text stands, wherever and however short, but in what was filled (H, W).

    The overlay network looks at every frame whole: a name that moves, or stands in one frame alone, is as clear there as
    in a still. Every frame is seen in one view before the next view: a network that sees another size than before has to
    arrange its memory anew, which takes half as long as the look itself.
    """
    shown = [False] * len(crops)
    for view, smallest in VIEWS:
        for number, crop in enumerate(crops):
            shown[number] = shown[number] or text.sees_text(view(crop), filled, smallest)
    return shown


def is_verified(crop: Crop, filled: Mask, settings: CleanSettings) -> bool:
    """Whether verification finds no text in a cleaned crop, as it looks at a still: it knows other scripts and dark print."""
    boxes, thick = left(crop, text.second_look(crop, settings), filled, settings)
    return not boxes and not thick


def alone(doubted: Sequence[bool]) -> list[bool] | None:
    """Which frames of a clip are cleaned as stills where some are `doubted`: those and the ones beside them; None where so
    many are that all must be. What is burnt in and moves is seen in nearly every frame that shows it; tissue that looks
    like print for a moment is not."""
    if sum(doubted) > _FEW * len(doubted):
        return None
    return [any(doubted[max(0, i - _BESIDE) : i + _BESIDE + 1]) for i in range(len(doubted))]


def _coloured(crop: Planes) -> Probability:
    if len(crop) == 1:
        return np.zeros(crop[0].shape, np.float32)
    return coloured_text_probability(channel_difference(picture_of(crop)), brightest_plane(crop) > _LIT)


# How the overlay network sees a frame, each with the pixels of the smallest text.
VIEWS: tuple[tuple[Callable[[Planes], Probability], int], ...] = (
    (lambda crop: text_seen_at(brightest_plane(crop), 1), text.SMALLEST_DRAWN),
    *((lambda crop, share=share: text_seen_at(brightest_plane(crop), share), text.SMALLEST_LARGE) for share in SMALLER),
    (_coloured, text.SMALLEST_DRAWN),
)


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

    def cut_out(pixels: Pixels) -> Pixels:
        return masked(np.ascontiguousarray(pixels[rows, columns]), here)

    dark = cut_out(darkest)
    crop, ownly_coloured = crop_of(dark, here, frames[0].words)
    ends = 0, len(frames) // 2, len(frames) - 1
    first, middle, last = (cut_out(frames[number].pixels) for number in ends)
    if any(no_speckle(shown, here, ownly_coloured) is not None for shown in (middle, first, last)):
        return None
    finding, _ = seen_in(crop, settings)
    spread = [cut_out(frame.pixels) for frame in frames[:: len(frames) // 4]]
    drawn = finding.mask & ~tracks(finding.mask, dark, spread)
    lit = lit_of(middle)
    if (
        finding.unread
        or (drawn & lit).sum() > settings.most_filled * lit.sum()
        or cut + suspected(dark, drawn, finding, settings) > settings.most_suspected
    ):
        return None
    beat()
    # Filled in every frame, and every frame verified.
    crops = [planes_of(cut_out(frame.pixels), drawn) for frame in frames]
    faces = may_show_faces([picture_of(crop) for crop in crops])
    fill(crops, drawn, settings.inpaint_radius, FAINT_CHROMA)
    beat()
    stills = alone([face or shown for face, shown in zip(faces, show_text(crops, drawn), strict=True)])
    looked = (crop_of(picture_of(crops[number]), here, frames[0].words)[0] for number in ends)
    if stills is None or not all(is_verified(each, drawn, settings) for each in looked):
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
