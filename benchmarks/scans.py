"""Real ultrasound without overlays to draw on, in a tuning and a scoring half that share no patient.

Patients (or video sources) are dealt to the halves by a hash of their name; scans without a patient id are all in the
scoring half. The rule was fixed before any tuning.
"""

from __future__ import annotations

import csv
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

_STILLS = ("pocus_frames", "stu_hospital", "bus_bra")
_CLIPS = ("covid_blues", "pocus_videos")
# Scans of the packs "without overlay" in which a person sees one after all: an icon, a mark, a window's frame.
_MARKED = ("Cov-Atlas", "plerual-effusion", "pneu-radiopaeda", "recommendations", "volpecelli", "SSRN")


@dataclass(frozen=True)
class Source:
    """One still or clip of the pack."""

    path: Path
    dataset: str
    patient: str
    is_clip: bool


def patient_of(row: dict[str, str]) -> str:
    """The name that decides the half: frames and videos cut from one source share it."""
    group = row["group"].split(" | ")[0]
    return re.sub(r"(_set\d+|[-+.].*)$", "", group) if row["dataset"].startswith("pocus") else group


def half_of(patient: str) -> str:
    return "scoring" if not patient or hashlib.sha256(patient.encode()).digest()[0] % 2 else "tuning"


def sources(root: Path, half: str) -> list[Source]:
    """Every clean still and clip of one half ("tuning" or "scoring"), in a fixed order."""
    found = []
    with (root / "index.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            wanted = row["dataset"] in _STILLS + _CLIPS and row["kind"] != "mask" and row["has_overlay"] == "no"
            if wanted and half_of(patient_of(row)) == half and not any(m in row["path"] for m in _MARKED):
                clip = row["dataset"] in _CLIPS
                found.append(Source(root / row["path"], row["dataset"], patient_of(row), clip))
    return sorted(found, key=lambda s: hashlib.sha256(s.path.name.encode()).digest())


def still(source: Source, position: float = 0.5) -> Pixels:
    """One RGB picture (H, W, 3) of a source; from a clip the frame at `position` of its length."""
    if not source.is_clip:
        return np.ascontiguousarray(cv2.imread(str(source.path))[:, :, ::-1])
    every = frames(source, 1000)
    return every[int(position * (len(every) - 1))]


def frames(source: Source, count: int) -> list[Pixels]:
    """Up to `count` frames of a clip, evenly spaced, RGB."""
    video = cv2.VideoCapture(str(source.path))
    every = []
    while True:
        more, frame = video.read()
        if not more:
            break
        every.append(np.ascontiguousarray(frame[:, :, ::-1]))
    video.release()
    if not every:
        raise ValueError(f"no frame in {source.path.name}")
    return [every[i] for i in np.linspace(0, len(every) - 1, min(count, len(every))).round().astype(int)]
