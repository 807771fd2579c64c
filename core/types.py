"""The nouns: what flows through the house, in the order in which it flows.

    Scan -> Frame -> CleanImage | Quarantined -> Shard -> Batch -> Checkpoint

What goes on to the aggregator is `federated.codec.EncodedUpdate`, which needs no trail: it names a round and a base.

Verbs are plain functions over these frozen dataclasses. Each noun carries a Trail, so that the audit log,
resume keys and a model card's lineage all read the same header. Trails of scans never leave the hospital.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usfmae.core import __version__

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def content_id(*parts: bytes | str) -> str:
    """SHA-256 over length-prefixed parts, as 64 hex digits: equal content, equal id."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big"))
        digest.update(raw)
    return digest.hexdigest()


def secret_id(secret: bytes, *parts: bytes | str) -> str:
    """HMAC-SHA-256 under a site's secret: a name for a scan that says nothing to anyone without the secret."""
    message = b"".join(
        len(raw).to_bytes(8, "big") + raw for raw in (p.encode() if isinstance(p, str) else p for p in parts)
    )
    return hmac.new(secret, message, hashlib.sha256).hexdigest()


def recipe_id(settings: Mapping[str, Any]) -> str:
    """Hash of the settings that made a thing, over canonical JSON."""
    return content_id(json.dumps(settings, sort_keys=True, separators=(",", ":"), default=str))


@dataclass(frozen=True)
class Trail:
    """Where a thing comes from: its own id, what it was made of, by which recipe and version."""

    id: str = ""
    parents: tuple[str, ...] = ()
    recipe: str = ""
    version: str = __version__

    def child(self, id_: str, recipe: str = "") -> Trail:
        return Trail(id_, (self.id,) if self.id else (), recipe)


@dataclass(frozen=True)
class Scan:
    """One file (or member of an archive) that may hold ultrasound. `trail.id` is an HMAC, never a UID or path."""

    path: Path
    kind: str  # a reader's name: "dicom", "raster", "video", "volume"
    trail: Trail = Trail()
    member: str = ""  # name inside a zip archive, else empty
    group: str = ""  # HMAC of what must stay on one side of a split: patient, study, or folder
    dataset: str = ""  # name of a public data set, "" at a hospital
    stamp: int = 0  # modification time of the file in ns when it was identified, 0 where that is not known


@dataclass(frozen=True)
class Region:
    """A rectangle of the image in pixels, half open: columns x0..x1, rows y0..y1 (DICOM PS3.3 C.8.5.5)."""

    x0: int
    y0: int
    x1: int
    y1: int
    kind: str = "tissue"  # "tissue" (2D), "color", "spectral", "mmode", "other"


@dataclass(frozen=True)
class Frame:
    """One decoded picture at native size, RGB."""

    pixels: Pixels  # (H, W, 3) uint8 RGB
    trail: Trail = Trail()
    index: int = 0  # position in its clip or volume
    time: float | None = None  # seconds since the clip's first frame
    regions: tuple[Region, ...] = ()  # as the header states them, not yet validated
    # Header strings (name, id, dates) to look for in the pixels; in memory only, never logged or stored.
    words: tuple[str, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class CleanImage:
    """A frame with everything that is not tissue removed, still at native size."""

    pixels: Pixels  # (H, W, 3) uint8 RGB
    mask: Mask  # (H, W) bool, True where the pixel was changed
    trail: Trail = Trail()
    notes: Mapping[str, float | int | str] = field(default_factory=dict)  # figures per step, no identifiers


@dataclass(frozen=True)
class Quarantined:
    """A frame or scan kept back for a person inside the hospital."""

    reason: str  # a short code of whatever kept it back, such as "text-left" or "unreadable"
    trail: Trail = Trail()
    detail: str = ""  # for people; no identifiers
    image: CleanImage | None = None  # as far as cleaning went, for a person who decides to keep it


@dataclass(frozen=True)
class Shard:
    """A file of packed images (N, S, S[, 3]) uint8 with an index beside it."""

    path: Path
    count: int
    channels: int  # 1 where R = G = B, else 3
    trail: Trail = Trail()


@dataclass(frozen=True)
class Batch:
    """Images as they go to the device; normalised there."""

    pixels: Pixels  # (B, S, S, C) uint8, C = 1 or 3
    positions: NDArray[np.int64]  # (B,) positions in the corpus


@dataclass(frozen=True)
class Checkpoint:
    """Weights on disk with their metadata (architecture, heads, mask ratio, normalisation, lineage)."""

    path: Path  # the safetensors file
    metadata: Mapping[str, str] = field(default_factory=dict)
    trail: Trail = Trail()
