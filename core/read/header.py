"""What is known of a scan before its pixels are decoded."""

from __future__ import annotations

from dataclasses import dataclass

from usfmae.core.config.read import ReadSettings
from usfmae.core.read.refusal_codes import RefusedScan, Unreadable

SMALLEST = 40  # pixels of the shorter side; viewers on patients' discs bring icons


@dataclass(frozen=True)
class Facts:
    """From a header alone. `patient` and `study` are identifiers: in memory only, they leave it as an HMAC."""

    format: str  # for people: "DICOM JPEG Baseline", "PNG", "mp4"
    frames: int  # frames in the file, as far as its header tells
    planned: int  # frames that are likely to be kept
    device: str = ""  # maker and model, "" where unknown
    patient: str = ""
    study: str = ""
    notes: tuple[str, ...] = ()  # for the ledger: "default-rate"
    beside: str = ""  # name of the file in the same folder that holds the pixels; in memory only


def refuse_icon(width: int, height: int) -> None:
    """RefusedScan for a picture that is too small to be a scan."""
    if 0 < min(width, height) < SMALLEST:
        raise RefusedScan("too-small", f"{width} x {height} pixels: an icon, no scan")


def check_size(width: int, height: int, frames: int, settings: ReadSettings) -> None:
    """Unreadable where the header claims an empty or an absurdly large picture, before anything is decoded."""
    if width < 1 or height < 1 or frames < 1:
        raise Unreadable("no-pixels", "the header describes an empty picture")
    if width * height > settings.max_megapixels * 1e6:
        raise Unreadable("too-large", f"{width} x {height} pixels, the limit is {settings.max_megapixels:g} megapixels")
    if frames > settings.max_frames:
        raise Unreadable("too-many-frames", f"{frames} frames, the limit is {settings.max_frames}")
