"""The safe profile on one frame: region, text, colour, graphics, inpaint, verify; it fails closed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from usfmae.core.clean import colour, graphics, region, text, verify
from usfmae.core.clean.inpaint import inpainted
from usfmae.core.clean.morphology import bounds, changed, dilated, gray_of, masked
from usfmae.core.clean.sheet import probability_within, windows_around
from usfmae.core.config.clean import CleanSettings
from usfmae.core.flow import CleanImage, Frame, Mask, Pixels, Quarantined

_SUSPECT = 0.02  # text probability from which a place is looked at again


def scan_region(frame: Frame, settings: CleanSettings) -> Mask | Quarantined:
    """Where tissue is (H, W), or why that cannot be said."""
    gray = gray_of(frame.pixels)
    found = region.measured(gray)
    tags = region.tagged(frame.regions, (gray.shape[0], gray.shape[1]))
    if tags is not None:
        if region.disagree(found, tags):
            return Quarantined("region-disagrees", frame.trail, "header and picture show the scan at different places")
        found = found & tags
    if found.mean() < max(settings.smallest_region, 1e-9):
        share = f"the scan region is {found.mean():.1%} of the frame"
        return Quarantined("region-small", frame.trail, share)
    return found


@dataclass(frozen=True)
class Overlay:
    """What is drawn over the tissue of one crop, each (H, W)."""

    drawn: Mask  # text, colour ink, graphics, their rim
    flow: Mask  # colour flow, which stays
    suspect: Mask  # where another look is due


def overlay(pixels: Pixels, inside: Mask, settings: CleanSettings) -> Overlay:
    """Everything drawn over the tissue `inside` an RGB crop."""
    ink, flow = colour.split(pixels)
    drawn = dilated(ink | (graphics.graphics(pixels) & ~flow)) & ~flow
    probability = text.probability_of(pixels, inside, text.evened, settings)
    words = verify.apart_from_vessels(pixels, text.words(probability, settings), flow, settings)
    return Overlay(drawn | words, flow, words | (probability > _SUSPECT))


def repaired(
    pixels: Pixels, seen: Overlay, settings: CleanSettings, words: Sequence[str] = ()
) -> tuple[Pixels, int, bool]:
    """The crop after verification, the rounds it took, and whether it is free of text."""
    look = seen.suspect
    for used in range(settings.repairs + 1):
        windows = windows_around(look)
        probability = probability_within(pixels, windows, text.brightest, settings.precision)
        found = verify.left(pixels, probability, settings, words)
        look = verify.apart_from_vessels(pixels, found, seen.flow, settings)
        if not look.any():
            return pixels, used, True
        pixels = inpainted(pixels, look, settings.inpaint_radius)
    return pixels, settings.repairs, False


def safe(frame: Frame, settings: CleanSettings) -> CleanImage | Quarantined:
    """One frame (H, W, 3) uint8 cleaned at native size, or kept back with the reason."""
    inside = scan_region(frame, settings)
    if isinstance(inside, Quarantined):
        return inside
    blanked = masked(frame.pixels, inside)
    rows, columns = bounds(inside)
    crop = np.ascontiguousarray(blanked[rows, columns])
    here = inside[rows, columns]
    seen = overlay(crop, here, settings)
    crop, rounds, free = repaired(inpainted(crop, seen.drawn, settings.inpaint_radius), seen, settings, frame.words)
    blanked[rows, columns] = crop
    blanked = masked(blanked, inside)
    mask = changed(blanked, frame.pixels)
    notes = {"region": round(float(inside.mean()), 4), "repairs": rounds}
    image = CleanImage(blanked, mask, frame.trail, notes)
    if free:
        return image
    return Quarantined("text-left", frame.trail, f"text was still found after {settings.repairs} repairs", image)
