"""The safe profile on one frame: region, text, colour, graphics, inpaint, verify; it fails closed."""

from __future__ import annotations

from collections.abc import Sequence

from usfmae.core.clean import colour, graphics, region, text, verify
from usfmae.core.clean.atlas import probability_within, windows_around
from usfmae.core.clean.inpaint import inpainted
from usfmae.core.clean.morphology import bounds, changed, dilated, gray_of, masked
from usfmae.core.clean.suspicion import Overlay, suspected
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import CleanImage, Frame, Mask, Pixels, Quarantined

_SUSPECT = 0.02  # text probability from which a place is looked at again


def scan_region(frame: Frame, settings: CleanSettings) -> tuple[Mask, float] | Quarantined:
    """Where tissue is (H, W) and what share of it may have been cut off, or why that cannot be said."""
    gray = gray_of(frame.pixels)
    found, cut = region.measured(gray)
    tags = region.tagged(frame.regions, (gray.shape[0], gray.shape[1]))
    if tags is not None:
        if region.disagree(found, tags):
            return Quarantined("region-disagrees", frame.trail, "header and picture show the scan at different places")
        found = found & tags
    if found.mean() < max(settings.smallest_region, 1e-9):
        share = f"the scan region is {found.mean():.1%} of the frame"
        return Quarantined("region-small", frame.trail, share)
    return found, cut


def overlay(pixels: Pixels, inside: Mask, settings: CleanSettings) -> Overlay:
    """Everything drawn over the tissue `inside` an RGB crop."""
    ink, flow = colour.split(pixels)
    found, measured = graphics.graphics(pixels)
    probability = text.probability_of(pixels, inside, text.evened, settings)
    sure, faint = text.words(probability, settings)
    words = verify.apart_from_vessels(pixels, sure, flow, settings)
    faint = verify.apart_from_vessels(pixels, faint, flow, settings)
    boxes = text.together(words + faint, flow.shape)
    return Overlay(
        drawn=(dilated(ink | (found & ~flow)) & ~flow) | boxes,
        flow=flow,
        suspect=boxes | (probability > _SUSPECT),
        certain=dilated(ink | measured) & ~flow,
        words=words,
        faint=faint,
    )


def repaired(
    pixels: Pixels, seen: Overlay, settings: CleanSettings, words: Sequence[str] = ()
) -> tuple[Pixels, list[list[text.Box]], bool]:
    """The crop after verification, the text that each round of repair filled, and whether the crop is free of it."""
    rounds: list[list[text.Box]] = []
    look, filled = seen.suspect, text.together(seen.words + seen.faint, seen.flow.shape)
    for _ in range(settings.repairs + 1):
        windows = windows_around(look)
        probability = probability_within(pixels, windows, text.brightest, settings.precision)
        found = verify.left(pixels, probability, filled, settings, words)
        boxes = verify.apart_from_vessels(pixels, found, seen.flow, settings)
        if not boxes:
            return pixels, rounds, True
        rounds.append(boxes)
        look = text.together(boxes, seen.flow.shape)
        pixels, filled = inpainted(pixels, look, settings.inpaint_radius), filled | look
    return pixels, rounds, False


def safe(frame: Frame, settings: CleanSettings) -> CleanImage | Quarantined:
    """One frame (H, W, 3) uint8 cleaned at native size, or kept back with the reason."""
    found = scan_region(frame, settings)
    if isinstance(found, Quarantined):
        return found
    inside, cut = found
    blanked = masked(frame.pixels, inside)
    rows, columns = bounds(inside)
    original = blanked[rows, columns].copy()
    here = inside[rows, columns]
    seen = overlay(original, here, settings)
    filled = inpainted(original, seen.drawn, settings.inpaint_radius)
    crop, rounds, free = repaired(filled, seen, settings, frame.words)
    seen.faint.extend(box for boxes in rounds for box in boxes)
    blanked[rows, columns] = crop
    blanked = masked(blanked, inside)
    mask = changed(blanked, frame.pixels)
    doubtful = cut + suspected(original, mask[rows, columns] & here, seen, settings)
    notes = {
        "region": round(float(inside.mean()), 4),
        "repairs": min(len(rounds), settings.repairs),
        "suspected": round(doubtful, 4),
    }
    image = CleanImage(blanked, mask, frame.trail, notes)
    if not free:
        return Quarantined("text-left", frame.trail, f"text was still found after {settings.repairs} repairs", image)
    if doubtful > settings.most_suspected:
        share = f"{doubtful:.1%} of what is lit would go on suspicion alone"
        return Quarantined("much-suspected", frame.trail, share, image)
    return image
