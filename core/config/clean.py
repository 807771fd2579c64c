"""Options of cleaning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from usfmae.core.config.base import Options


class CleanSettings(Options):
    profile: Literal["safe", "paper"] = "safe"
    """safe: fails closed. paper: the published pipeline as written; not safe for colour Doppler or identifiers."""
    inpaint_radius: float = Field(3.0, gt=0, le=20)
    """Radius of Navier-Stokes inpainting in pixels."""
