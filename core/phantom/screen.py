"""A scanner's screen round a simulated image: banner with a fake name, scale, gray bar, calipers, and what is ink."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from usfmae.core.types import Mask, Pixels

HEIGHT, WIDTH = 600, 800
FAMILY = ("GARCIA", "NOVAK", "OKAFOR", "SCHMIDT", "TANAKA", "ROSSI", "LARSEN", "DUBOIS", "KOWALSKI", "SILVA")
GIVEN = ("ANNA", "LEO", "MARTA", "IVAN", "NADIA", "OLA", "PAUL", "RITA", "SAM", "VERA")
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX)


@dataclass(frozen=True)
class Screen:
    """One frame as a scanner would store it, and the truth about it."""

    pixels: Pixels  # (600, 800, 3) uint8 RGB
    clean: Pixels  # the same without ink
    ink: Mask  # (600, 800) True where text or graphics were drawn
    region: tuple[int, int, int, int]  # x0, y0, x1, y1 of the scan, half open
    name: str  # fake patient name, DICOM form
    patient: str  # fake id
    date: str  # fake date, YYYYMMDD
    strings: tuple[str, ...] = field(default=())


def draw_screen(image: Pixels, seed: int, in_tissue: bool = True) -> Screen:
    """Put a simulated image (H, W) on a screen with burnt-in fakes; the same seed draws the same overlay."""
    rng = np.random.default_rng(seed)
    height, width = image.shape
    x0, y0 = (WIDTH - width) // 2, 70
    clean = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    clean[y0 : y0 + height, x0 : x0 + width] = image[..., None]
    drawn = clean.copy()
    name = f"{rng.choice(FAMILY)}^{rng.choice(GIVEN)}"
    patient = f"{rng.integers(10**6, 10**7)}"
    date = f"20{rng.integers(10, 26)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}"
    strings = _banner(drawn, rng, name, patient, date)
    _scale_and_bar(drawn, x0, y0, width, height)
    if in_tissue:
        strings += _caliper(drawn, rng, x0, y0, width, height)
    ink = np.any(drawn != clean, axis=2)
    return Screen(drawn, clean, ink, (x0, y0, x0 + width, y0 + height), name, patient, date, tuple(strings))


def _banner(canvas: Pixels, rng: np.random.Generator, name: str, patient: str, date: str) -> list[str]:
    font, bright = FONTS[int(rng.integers(2))], int(rng.integers(190, 256))
    shown = [
        name.replace("^", ", "),
        f"ID {patient}",
        f"{date[6:]}.{date[4:6]}.{date[:4]}",
        "DEMO HOSPITAL",
        f"MI {rng.uniform(0.4, 1.3):.1f}",
    ]
    places = ((12, 22), (12, 46), (640, 22), (640, 46), (360, 22))
    for text, (x, y) in zip(shown, places, strict=True):
        cv2.putText(canvas, text, (x, y), font, 0.5, (bright, bright, bright), 1, cv2.LINE_AA)
    return shown


def _scale_and_bar(canvas: Pixels, x0: int, y0: int, width: int, height: int) -> None:
    ramp = np.linspace(255, 0, 160, dtype=np.uint8)[:, None, None]
    canvas[y0 : y0 + 160, 24:36] = ramp
    for step in range(9):
        y = y0 + step * (height - 1) // 8
        cv2.line(canvas, (x0 + width + 12, y), (x0 + width + (24 if step % 4 == 0 else 18), y), (200, 200, 200), 1)


def _caliper(canvas: Pixels, rng: np.random.Generator, x0: int, y0: int, width: int, height: int) -> list[str]:
    """Two crosses, a dotted line between them, its length in millimetres beside it."""
    colour = ((230, 230, 60), (70, 230, 90), (240, 240, 240))[int(rng.integers(3))]
    ends = [
        np.array([x0 + width * rng.uniform(*span), y0 + height * rng.uniform(0.35, 0.7)]).astype(int)
        for span in ((0.3, 0.42), (0.58, 0.7))
    ]
    for x, y in ends:
        cv2.line(canvas, (x - 6, y), (x + 6, y), colour, 1)
        cv2.line(canvas, (x, y - 6), (x, y + 6), colour, 1)
    for t in np.linspace(0.08, 0.92, 22):
        x, y = (ends[0] * (1 - t) + ends[1] * t).astype(int)
        cv2.circle(canvas, (int(x), int(y)), 1, colour, -1)
    label = f"D1 {np.hypot(*(ends[1] - ends[0])) * 0.12:.1f} mm"
    where = (int(ends[1][0]) - 30, int(ends[1][1]) + 28)
    cv2.putText(canvas, label, where, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
    return [label]
