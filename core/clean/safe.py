"""The safe profile on one frame: region, foreign content, findings, fill, verification, bounds; it fails closed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from usfmae.core.clean import colour, graphics, region, text
from usfmae.core.clean.finding import Crop, Finding, united
from usfmae.core.clean.foreign import foreign
from usfmae.core.clean.inpaint import inpainted
from usfmae.core.clean.morphology import bounds, changed, gray_of, masked
from usfmae.core.clean.verify import lit_of, suspected, verified
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import CleanImage, Frame, Mask, Pixels, Quarantined

# Every step takes a Crop and answers a Finding. One more is one more file and one more name at the end: text comes first,
# since its boxes are filled whole.
STEPS = (text.find, colour.find, graphics.find)


def scan_region(frame: Frame, settings: CleanSettings) -> tuple[Mask, float] | Quarantined:
    """Where tissue is (H, W) and what share of it may have been cut off, or why that cannot be said."""
    gray = gray_of(frame.pixels)
    scan, cut = region.measured(gray)
    tags = region.tagged(frame.regions, (gray.shape[0], gray.shape[1]))
    if tags is not None:
        if region.disagree(scan, tags):
            return Quarantined("region-disagrees", frame.trail, "header and picture show the scan at different places")
        scan = scan & tags
    if scan.mean() < max(settings.smallest_region, 1e-9):
        share = f"the scan region is {scan.mean():.1%} of the frame"
        return Quarantined("region-small", frame.trail, share)
    return scan, cut


def crop_of(pixels: Pixels, inside: Mask, words: tuple[str, ...] = ()) -> tuple[Crop, bool]:
    """What the steps see of an RGB crop that is black outside, and whether most of it is coloured otherwise than by a
    tint of the display."""
    neutral, ownly_coloured = colour.untinted(pixels, inside)
    _, flow = colour.split(neutral)
    return Crop(neutral, inside, flow, words), ownly_coloured


def seen_in(crop: Crop, settings: CleanSettings) -> tuple[Finding, Mask]:
    """Everything drawn over the tissue of a crop, and where text boxes are to be filled whole (H, W).

    What is of one dark level all around holds nothing that could be drawn there.
    """
    findings = [step(crop, settings) for step in STEPS]
    drawable = crop.inside & ~region.blank(crop.pixels)
    whole = united(findings)
    return replace(whole, mask=whole.mask & drawable), findings[0].mask


@dataclass(frozen=True)
class Doubt:
    """Why a cleaned frame may have to be kept back."""

    text_left: bool
    unread: int  # places that are text for sure and that no engine reads
    suspected: float  # share of the lit pixels that went, or were cut off, on suspicion alone
    filled: float  # share of the lit pixels that went for any reason

    def reason(self, settings: CleanSettings) -> tuple[str, str] | None:
        if self.text_left:
            return "text-left", f"text was still found after {settings.repairs} repairs"
        if self.unread:
            return "text-unread", f"{self.unread} places are text for the detector, and no engine reads them"
        if self.suspected > settings.most_suspected:
            return "much-suspected", f"{self.suspected:.1%} of what is lit would go on suspicion alone"
        if self.filled > settings.most_filled:
            return "much-filled", f"{self.filled:.1%} of what is lit would be filled"
        return None


def cleaned_crop(original: Pixels, crop: Crop, cut: float, settings: CleanSettings) -> tuple[Pixels, Doubt, int]:
    """An RGB crop without what is drawn over it, what is doubtful about that, and how often it was repaired."""
    finding, text_boxes = seen_in(crop, settings)
    filled = inpainted(original, finding.mask, settings.inpaint_radius)
    picture, rounds, unread, free = verified(crop, filled, text_boxes, settings)
    picture = masked(picture, crop.inside)
    removed = changed(picture, original) & crop.inside
    finding = replace(finding, boxes=finding.boxes + [box for boxes in rounds for box in boxes])
    lit = lit_of(original)
    share = float((removed & lit).sum() / max(1, int(lit.sum())))
    doubtful = cut + suspected(crop.pixels, removed, finding, settings)
    return picture, Doubt(not free, finding.unread + unread, doubtful, share), len(rounds)


def without_text(original: Pixels, crop: Crop, settings: CleanSettings) -> Pixels:
    """An RGB crop of what is no ultrasound, for a person who may release it: text is filled, nothing else is touched.

    Large letters are not looked for: the features of a face look like them.
    """
    drawn = text.find(replace(crop, seen_smaller=False), settings).mask & crop.inside
    return masked(inpainted(original, drawn, settings.inpaint_radius), crop.inside)


def safe(frame: Frame, settings: CleanSettings) -> CleanImage | Quarantined:
    """One frame (H, W, 3) uint8 cleaned at native size, or kept back with the reason."""
    scan = scan_region(frame, settings)
    if isinstance(scan, Quarantined):
        return scan
    inside, cut = scan
    rows, columns = bounds(inside)
    here = np.ascontiguousarray(inside[rows, columns])
    original = masked(np.ascontiguousarray(frame.pixels[rows, columns]), here)
    crop, ownly_coloured = crop_of(original, here, frame.words)
    pixels = np.zeros_like(frame.pixels)
    if (reason := foreign(original, here, ownly_coloured)) is not None:
        pixels[rows, columns] = without_text(original, crop, settings)
        image = CleanImage(pixels, changed(pixels, frame.pixels), frame.trail)
        return Quarantined(reason[0], frame.trail, reason[1], image)
    picture, doubt, repairs = cleaned_crop(original, crop, cut, settings)
    pixels[rows, columns] = picture
    notes = {
        "region": round(float(inside.mean()), 4),
        "repairs": min(repairs, settings.repairs),
        "suspected": round(doubt.suspected, 4),
        "filled": round(doubt.filled, 4),
    }
    image = CleanImage(pixels, changed(pixels, frame.pixels), frame.trail, notes)
    reason = doubt.reason(settings)
    return image if reason is None else Quarantined(reason[0], frame.trail, reason[1], image)
