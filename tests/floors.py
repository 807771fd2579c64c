"""The floor of sites that are far too small for the default one: said openly, so that a test trains in seconds."""

from __future__ import annotations

import json
from typing import Any

LOWERED: dict[str, Any] = {
    "new_campaigns": "auto",
    "min_batch": 1,
    "min_steps": 1,
    "min_images": 1,
    "min_patients": 1,
    "max_patient_share": 1.0,
    "min_masked": 0.0,
    "min_visible": 0.0,
    "min_visible_patches": 1,
    "probe": False,
    "encodings": ("int8", "int4", "sparse", "bf16", "fp32"),
    "campaigns_a_day": 1000,
    "requests_a_day": 100_000,
}


def lowered() -> list[str]:
    """The same for `usfmae-client init`."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in LOWERED.items()}
    return [word for key, value in values.items() for word in ("--set", f"privacy.{key}={json.dumps(value)}")]
