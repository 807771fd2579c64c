"""Frame -> CleanImage | Quarantined: everything that is not tissue removed, or the frame kept back for a person.

    region -> text -> colour -> graphics -> inpaint -> verify

`clean` takes one frame, `clean_clip` the frames of one clip (or the stills of one study), whose static overlay is
found once. The `paper` profile is the published pipeline as written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from usfmae.core.config.clean import CleanSettings
from usfmae.core.errors import SourceError
from usfmae.core.types import CleanImage, Frame, Pixels, Quarantined


def _checked(frame: Frame | Pixels) -> Frame:
    frame = frame if isinstance(frame, Frame) else Frame(frame)
    pixels = frame.pixels
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise SourceError(f"frame of shape {pixels.shape} {pixels.dtype}", "cleaning takes (H, W, 3) uint8 RGB")
    return frame


def clean(frame: Frame | Pixels, settings: CleanSettings) -> CleanImage | Quarantined:
    """One frame (H, W, 3) uint8 RGB at native size; raises SourceError for any other shape or type."""
    from usfmae.core.clean.paper import paper
    from usfmae.core.clean.safe import safe

    frame = _checked(frame)
    if settings.profile == "safe":
        return safe(frame, settings)
    pixels = paper(frame.pixels)
    return CleanImage(pixels, (pixels != frame.pixels).any(2), frame.trail)


def clean_clip(
    frames: Iterable[Frame], settings: CleanSettings, beat: Callable[[], object] = lambda: None
) -> Iterator[CleanImage | Quarantined]:
    """The frames of one clip, in order; one result for each.

    Frames that carry a time are taken for moments of one clip and share their static overlay; frames without one (the
    stills of a study, the slices of a volume) are each cleaned alone. `beat` is called after each step of a clip's
    common work, which answers nothing until all its frames are done.
    """
    from usfmae.core.clean.clip import safe_clip

    checked = (_checked(frame) for frame in frames)
    if settings.profile == "safe":
        yield from safe_clip(checked, settings, beat)
    else:
        yield from (clean(frame, settings) for frame in checked)


def cut_to_scan(image: CleanImage, settings: CleanSettings) -> CleanImage:
    """The image cut to the box around what was kept of the scan, (H', W', 3); whole where the settings say so."""
    from usfmae.core.clean.morphology import bounds

    lit = image.pixels.max(2) > 0
    if settings.profile == "paper" or settings.crop == "frame" or not lit.any():
        return image
    rows, columns = bounds(lit)
    return replace(image, pixels=image.pixels[rows, columns], mask=image.mask[rows, columns])


__all__ = ["clean", "clean_clip", "cut_to_scan"]
