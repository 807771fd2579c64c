"""Options of reading scans."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from usfmae.core.config.base import Options


class ReadSettings(Options):
    fps: float = Field(3.0, gt=0, le=1000)
    """Frames kept per second of a clip, chosen by time (paper, section on data: 3 per second)."""
    default_rate: float = Field(25.0, gt=0, le=1000)
    """Frame rate assumed where a clip states none, in frames per second; noted in the ledger."""
    slices: int = Field(0, ge=0)
    """At most this many slices of a volume, spread evenly over it; 0 keeps all."""
    duplicate_bits: int = Field(4, ge=0, le=256)
    """Frames of a scan whose 256-bit perceptual hashes differ in fewer bits than this are dropped; 0 keeps all."""
    modalities: tuple[str, ...] = ("US", "IVUS")
    """DICOM modalities that are read; every other is refused."""
    group_by: Literal["folder", "file"] = "folder"
    """What a file without a patient in its header is held together with when data are split."""
    follow_links: bool = True
    """Follow links to folders outside of the sources, each folder once; a site does not unless it says so."""
    max_megapixels: float = Field(64.0, gt=0)
    """Larger frames are refused before they are decoded."""
    max_frames: int = Field(100_000, ge=1)
    """Clips and volumes that claim more frames are refused before they are decoded."""
    max_member_mb: float = Field(2048.0, gt=0)
    """Larger members of an archive are refused before they are unpacked."""
    max_members: int = Field(100_000, ge=1)
    """Archives with more members are refused."""
    decode_seconds: float = Field(30.0, gt=0)
    """A scan whose next frame is not decoded within this time is given up."""
    clean_seconds: float = Field(30.0, gt=0)
    """A scan whose cleaning gives no sign of life for this time is given up; a clip gives several before its frames."""
    memory_mb: int = Field(4096, ge=512)
    """A worker that asks for more memory than this gives its scan up."""
    shard_images: int = Field(1024, ge=1)
    """Images a shard is planned for."""
