"""What every cleaning step answers: where ink is, what of it is beyond doubt, and the boxes an engine may confirm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from usfmae.core.clean.morphology import brightest_of, channel_difference
from usfmae.core.clean.ocr import Probability
from usfmae.core.clean.overlay_net import coloured_text_probability, large_text_probability, overlay_probability
from usfmae.core.types import Mask, Pixels

Box = tuple[tuple[slice, slice], Mask]  # a window of the picture, and the text within it

_LIT = 24  # gray levels


@dataclass(frozen=True)
class Crop:
    """The scan's bounding box of one frame, as every step sees it."""

    pixels: Pixels  # (H, W, 3) uint8 RGB, black outside the scan, the display's own tint taken out
    inside: Mask  # (H, W) the scan
    flow: Mask  # (H, W) colour flow, which stays
    words: tuple[str, ...] = ()  # name, id and dates of the header
    seen_smaller: bool = True  # whether large letters are looked for

    def cut(self, window: tuple[slice, slice]) -> Crop:
        """A part of it."""
        return Crop(np.ascontiguousarray(self.pixels[window]), self.inside[window], self.flow[window], self.words)

    @cached_property
    def overlay(self) -> tuple[Probability, Probability]:
        """Probability of drawn text and of drawn graphics at each pixel, each (H, W)."""
        return overlay_probability(brightest_of(self.pixels))

    @cached_property
    def large_text(self) -> Probability:
        """Probability of text in the crop seen smaller (H, W)."""
        if not self.seen_smaller:
            return np.zeros(self.inside.shape, np.float32)
        return large_text_probability(brightest_of(self.pixels))

    @cached_property
    def coloured_text(self) -> Probability:
        """Probability of text in how far the channels differ at each pixel (H, W)."""
        return coloured_text_probability(channel_difference(self.pixels), brightest_of(self.pixels) > _LIT)


@dataclass(frozen=True)
class Finding:
    """What one step found, in the crop's coordinates."""

    mask: Mask  # (H, W) to be filled
    certain: Mask  # (H, W) what no tissue looks like; the rest was removed on suspicion
    boxes: list[Box] = field(default_factory=list)  # text that becomes certain where an engine reads it
    unread: int = 0  # places that are text for sure, stand on colour flow, and that no engine reads


def together(boxes: Iterable[Box], shape: Sequence[int]) -> Mask:
    """Boxes as one mask (H, W)."""
    mask = np.zeros(tuple(shape[:2]), bool)
    for window, box in boxes:
        mask[window] |= box
    return mask


def united(findings: Sequence[Finding]) -> Finding:
    """Several findings of one crop as one."""
    mask, certain = findings[0].mask.copy(), findings[0].certain.copy()
    for finding in findings[1:]:
        mask |= finding.mask
        certain |= finding.certain
    boxes = [box for finding in findings for box in finding.boxes]
    return Finding(mask, certain, boxes, sum(finding.unread for finding in findings))
