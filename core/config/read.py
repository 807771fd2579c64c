"""Options of reading scans."""

from __future__ import annotations

from pydantic import Field
from usfmae.core.config.base import Options


class ReadSettings(Options):
    fps: float = Field(3.0, gt=0, le=1000)
    """Frames kept per second of a clip, chosen by time (paper, section on data: 3 per second)."""
    default_rate: float = Field(25.0, gt=0, le=1000)
    """Frame rate assumed where a clip states none, in frames per second; noted in the ledger."""
    duplicate_bits: int = Field(0, ge=0, le=64)
    """Frames of a scan whose 64-bit perceptual hashes differ in fewer bits than this are dropped; 0 keeps all."""
    max_megapixels: float = Field(64.0, gt=0)
    """Larger frames are refused before they are decoded."""
