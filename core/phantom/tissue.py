"""Speckle images by the linear convolution model: random scatterers, a point-spread function, attenuation.

The image line is the scatterer map convolved with a separable pulse-echo PSF (Bamber & Dickinson 1980), then
attenuated with depth, partly compensated (TGC), envelope-detected and log-compressed. Computed on the acquisition
grid (depth x line) and scan-converted to a rectangle (linear probe) or a sector (curved or phased probe).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from usfmae.core.types import Mask, Pixels

Geometry = Literal["linear", "sector"]
Floats = NDArray[np.float32]

DEPTHS, LINES = 512, 256  # samples of the acquisition grid
DYNAMIC_RANGE = 55.0  # dB shown
SMOOTHING = 2.0  # pixels; stands for the speckle reduction of a scanner's display


@dataclass(frozen=True)
class Tissue:
    """A patient-like arrangement; the same seed is the same tissue in every frame of a clip."""

    seed: int
    geometry: Geometry = "linear"
    attenuation: float = 0.6  # dB / cm / MHz
    frequency: float = 6.0  # MHz
    depth: float = 6.0  # cm


def simulate(tissue: Tissue, frames: int = 1, size: tuple[int, int] = (420, 480)) -> tuple[list[Pixels], Mask]:
    """Frames (H, W) uint8 of one moving tissue, and the mask (H, W) of the scan region. `size` is (H, W)."""
    echo = _echogenicity(tissue)
    rng = np.random.default_rng(tissue.seed + 1)
    scatterers = rng.standard_normal((2, DEPTHS, LINES)).astype(np.float32)
    columns, rows, region = _scan_grid(tissue.geometry, size)
    pictures = []
    for index in range(frames):
        phase = 2 * np.pi * index / 24  # a slow breath-like motion, 24 frames a cycle
        envelope = _envelope(*_moved(echo, scatterers, phase), tissue)
        image = cv2.GaussianBlur(cv2.remap(envelope, columns, rows, cv2.INTER_LINEAR), (0, 0), SMOOTHING)
        pictures.append(np.where(region, image, 0).astype(np.uint8))
    return pictures, region


def _smooth_noise(rng: np.random.Generator, sigma: float) -> Floats:
    noise = cv2.GaussianBlur(rng.standard_normal((DEPTHS, LINES)).astype(np.float32), (0, 0), sigma)
    return np.asarray(noise / (np.abs(noise).max() + 1e-6))


def _echogenicity(tissue: Tissue) -> Floats:
    """(DEPTHS, LINES) amplitude: layers, a texture, one or two inclusions with shadow or enhancement."""
    rng = np.random.default_rng(tissue.seed)
    depth = np.linspace(0, 1, DEPTHS, dtype=np.float32)[:, None] + 0.05 * _smooth_noise(rng, 40)
    echo = np.ones((DEPTHS, LINES), np.float32)
    for edge in np.sort(rng.uniform(0.05, 0.9, rng.integers(3, 6))):
        echo = np.where(depth > edge, echo * rng.uniform(0.5, 1.7), echo)
        echo += 4.0 * np.exp(-(((depth - edge) / 0.006) ** 2))  # a bright interface between layers
    echo *= np.exp(0.7 * _smooth_noise(rng, 12))
    y, x = np.mgrid[0:DEPTHS, 0:LINES].astype(np.float32)
    for _ in range(int(rng.integers(1, 3))):
        centre = rng.uniform(0.25, 0.7) * DEPTHS, rng.uniform(0.25, 0.75) * LINES
        radius = rng.uniform(25, 70), rng.uniform(15, 40)
        inside = ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 + 0.4 * _smooth_noise(rng, 9)
        below = (np.abs(x - centre[1]) < radius[1] * 0.8) & (y > centre[0] + radius[0])
        cyst = rng.random() < 0.5
        echo = np.where(inside < 1, echo * (0.03 if cyst else 0.35), echo)
        echo = np.where(below, echo * (1.7 if cyst else 0.5), echo)  # enhancement behind a cyst, shadow behind a mass
    return np.ascontiguousarray(echo, np.float32)


def _moved(echo: Floats, scatterers: Floats, phase: float) -> tuple[Floats, Floats]:
    """Tissue displaced by up to 16 samples; speckle moves with it."""
    if phase == 0:
        return echo, scatterers
    y, x = np.mgrid[0:DEPTHS, 0:LINES].astype(np.float32)
    # OpenCV 5 does not return from remap when the two maps differ in type, so both are made float32.
    shift = (y + 16 * np.sin(phase) * np.cos(np.pi * x / LINES)).astype(np.float32)
    across = (x + 6 * np.sin(phase + y / DEPTHS)).astype(np.float32)

    def move(a: Floats) -> Floats:
        return np.asarray(cv2.remap(a, across, shift, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT), np.float32)

    return move(echo), np.stack([move(scatterers[0]), move(scatterers[1])])


def _envelope(echo: Floats, scatterers: Floats, tissue: Tissue) -> Floats:
    """(DEPTHS, LINES) uint8-range brightness: convolve, attenuate, detect, compress."""
    lateral = 1.4 if tissue.geometry == "linear" else 2.0
    real, imaginary = (cv2.GaussianBlur(echo * part, (0, 0), sigmaX=lateral, sigmaY=1.1) for part in scatterers)
    depth = np.linspace(0, tissue.depth, DEPTHS, dtype=np.float32)[:, None]
    # Two-way loss in dB, four fifths of it compensated by the scanner's time gain.
    loss = 2 * tissue.attenuation * tissue.frequency * depth * 0.2
    envelope = np.hypot(real, imaginary) * 10 ** (-loss / 20)
    decibel = 20 * np.log10(envelope / (np.quantile(envelope, 0.9995) + 1e-9) + 1e-6)
    return np.asarray(255 * np.clip(1 + decibel / DYNAMIC_RANGE, 0, 1) ** 1.5, np.float32)


def _scan_grid(geometry: Geometry, size: tuple[int, int]) -> tuple[Floats, Floats, Mask]:
    """For each output pixel its line and depth on the acquisition grid, and whether it lies in the scan region."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    if geometry == "linear":
        columns, rows = x * (LINES - 1) / (width - 1), y * (DEPTHS - 1) / (height - 1)
        return columns, rows, np.ones(size, bool)
    opening, apex = np.deg2rad(37), 0.16 * height  # half angle; the virtual apex above the picture
    radius = np.hypot(x - width / 2, y + apex)
    angle = np.arctan2(x - width / 2, y + apex)
    near, far = apex / np.cos(opening), height + apex - 1
    columns = ((angle / opening + 1) / 2 * (LINES - 1)).astype(np.float32)
    rows = ((radius - near) / (far - near) * (DEPTHS - 1)).astype(np.float32)
    region = (np.abs(angle) <= opening) & (radius >= near) & (radius <= far)
    return columns, rows, np.asarray(region, bool)
