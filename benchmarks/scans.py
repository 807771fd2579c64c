"""Real ultrasound without overlays to draw on, in a tuning and a scoring half that share no patient, and a fresh part.

Patients (or video sources) are dealt to the halves by a hash of their name; scans without a patient id are all in the
scoring half. The rule was fixed before any tuning. The fresh part was added when both halves had been looked at: data
sets, devices and anatomy (fetal heads, a heart, a bone, a mouse's liver, a phantom) of which neither half holds a scan.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

_STILLS = ("pocus_frames", "stu_hospital", "bus_bra")
_CLIPS = ("covid_blues", "pocus_videos")
_FRESH_STILLS = ("hc18/", "volumes_us/itk/Mouse", "volumes_us/plus/Ultrasonix", "volumes_us/plus/vtkVolume")
_FRESH_CLIPS = ("volumes_us/plus/Bone", "dicom_us/pydicom-data/color3d")
# Rows and columns of a screen that show tissue and nothing else, as shares: seen by eye before anything was cleaned.
_WINDOWS = {"hc18": (0.15, 0.85, 0.15, 0.85), "dicom_us": (0.10, 0.83, 0.16, 0.84)}
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


def _is_in(row: dict[str, str], half: str) -> bool:
    if row["kind"] == "mask":
        return False
    if half == "fresh":
        return row["path"].startswith(_FRESH_STILLS + _FRESH_CLIPS)
    clean = row["dataset"] in _STILLS + _CLIPS and row["has_overlay"] == "no"
    return clean and half_of(patient_of(row)) == half and not any(m in row["path"] for m in _MARKED)


def sources(root: Path, half: str) -> list[Source]:
    """Every clean still and clip of one half ("tuning" or "scoring") or of the fresh part, in a fixed order."""
    files = []
    with (root / "index.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            if _is_in(row, half):
                clip = row["dataset"] in _CLIPS or row["path"].startswith(_FRESH_CLIPS)
                files.append(Source(root / row["path"], row["dataset"], patient_of(row), clip))
    return sorted(files, key=lambda s: hashlib.sha256(s.path.name.encode()).digest())


def still(source: Source, position: float = 0.5) -> Pixels:
    """One RGB picture (H, W, 3) of a source; from a clip the frame at `position` of its length."""
    if source.path.suffix in (".png", ".jpg"):
        return within(source, cv2.imread(str(source.path))[:, :, ::-1])
    every = frames(source, 1000)
    return every[int(position * (len(every) - 1))]


def within(source: Source, pixels: Pixels) -> Pixels:
    """The window of a screen that shows tissue only; the whole where the data set has none."""
    height, width = pixels.shape[:2]
    top, bottom, left, right = _WINDOWS.get(source.dataset, (0, 1, 0, 1))
    rows, columns = slice(round(top * height), round(bottom * height)), slice(round(left * width), round(right * width))
    return np.ascontiguousarray(pixels[rows, columns])


def _decoded(path: Path) -> Iterator[Pixels]:
    """Every frame of a video, a volume or a DICOM clip, RGB."""
    if path.suffix == ".mha":
        import SimpleITK

        volume = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        yield from (np.repeat(each[:, :, None], 3, 2) for each in volume.reshape(-1, *volume.shape[-2:]))
    elif path.suffix == ".dcm":
        from pydicom.pixels import iter_pixels

        yield from iter_pixels(path)
    else:
        video = cv2.VideoCapture(str(path))
        while (read := video.read())[0]:
            yield np.ascontiguousarray(read[1][:, :, ::-1])
        video.release()


def frames(source: Source, count: int) -> list[Pixels]:
    """Up to `count` frames of a clip or slices of a volume, evenly spaced, RGB."""
    every = [within(source, pixels) for pixels in _decoded(source.path)]
    if not every:
        raise ValueError(f"no frame in {source.path.name}")
    return [every[i] for i in np.linspace(0, len(every) - 1, min(count, len(every))).round().astype(int)]
