"""Options of cleaning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from usfmae.core.config.base import Options


class CleanSettings(Options):
    profile: Literal["safe", "paper"] = "safe"
    """safe: fails closed. paper: the published pipeline as written; not safe for colour Doppler or identifiers."""
    inpaint_radius: float = Field(2.0, gt=0, le=20)
    """Radius of Navier-Stokes inpainting in pixels, in the safe profile; the paper profile keeps 3."""
    ocr: Literal["tesserocr", "pytesseract"] = "tesserocr"
    """Second text engine of the safe profile; the paper profile always starts the Tesseract program."""
    precision: Literal["auto", "f32", "bf16"] = "auto"
    """Arithmetic of the text detector; auto takes bf16 where the processor has it."""
    text_threshold: float = Field(0.3, gt=0, lt=1)
    """Probability above which the detector's pixels are text."""
    doubt_threshold: float = Field(0.12, gt=0, lt=1)
    """Probability above which pixels left after cleaning are read by the second engine."""
    faint_threshold: float = Field(0.02, gt=0, lt=1)
    """Probability that bounds a suspected text; it counts where it somewhere exceeds doubt_threshold."""
    repairs: int = Field(2, ge=0, le=5)
    """Rounds of cleaning again where verification still finds text; after the last one the frame is quarantined."""
    clip_window: int = Field(32, ge=1, le=512)
    """Frames of a clip held in memory at once; their static overlay is found together."""
    smallest_region: float = Field(0.05, ge=0, le=1)
    """A scan region below this share of the frame is quarantined."""
    most_suspected: float = Field(0.02, ge=0, le=1)
    """A frame of which more than this share of the lit pixels would go on suspicion alone is quarantined, for a person
    who sees whether it was tissue."""
    most_filled: float = Field(0.15, ge=0, le=1)
    """A frame of which more than this share of the lit pixels would be filled for whatever reason is quarantined."""
    crop: Literal["scan", "frame"] = "scan"
    """scan: in the safe profile images are cut to the box around what was kept before they are resized, so that no part of
    them is the black screen beside the scan. frame: the whole frame, as the paper profile always keeps it."""
