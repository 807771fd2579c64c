"""Simulated ultrasound screens to draw on: speckle in a sector or a rectangle, flow, and the panes of other modes.

Fully developed speckle is the magnitude of band-limited complex Gaussian noise (Goodman 2007, ch. 3): here the noise is
filtered in the Fourier plane, weighted by a map of echogenicity, and log-compressed. No patient, no licence.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Rng = np.random.Generator

SIZES = ((600, 800), (720, 960), (480, 640))


@dataclass
class Screen:
    """A device's screen before anything is burnt in."""

    pixels: Pixels  # (H, W, 3)
    scan: Mask  # (H, W) where the scan is
    flow: Mask  # (H, W) where colour flow is shown
    pane: tuple[int, int, int, int]  # x0, y0, x1, y1 that a string may take: the scan's box or the pane of the mode


def speckle(shape: tuple[int, int], rng: Rng, shift: float = 0.0) -> Pixels:
    """(h, w) gray levels of layered tissue with a few inclusions; `shift` moves it by that many pixels along depth."""
    height, width = shape
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    band = np.exp(-(((np.abs(fy) - 0.12) / 0.07) ** 2) - (fx / rng.uniform(0.05, 0.09)) ** 2)
    noise = rng.standard_normal((2, height, width))
    echo = np.abs(np.fft.ifft2(np.fft.fft2(noise[0] + 1j * noise[1]) * band))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    level = np.zeros(shape, np.float32)
    for _ in range(int(rng.integers(3, 7))):  # layers, in decibel
        edge, tilt = rng.uniform(0, height), rng.uniform(-0.2, 0.2)
        level += np.where(y + tilt * x > edge, np.float32(rng.uniform(-7, 7)), 0)
    for _ in range(int(rng.integers(1, 5))):  # cysts, masses, bright foci
        cy, cx = rng.uniform(0.15, 0.9) * height, rng.uniform(0.1, 0.9) * width
        ry, rx = rng.uniform(0.03, 0.16, 2) * height
        inside = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2
        level += np.where(inside < 1, np.float32(rng.choice((-30, -14, -8, 9))), 0)
    decibel = 20 * np.log10(echo / np.median(echo) + 1e-3) + cv2.GaussianBlur(level, (0, 0), 2)
    gray = np.clip(105 + rng.uniform(-25, 15) + 3.1 * decibel - 45 * y / height * rng.random(), 0, 255)
    return np.roll(gray.astype(np.uint8), round(shift), axis=0)


def _sector(shape: tuple[int, int], rng: Rng) -> Mask:
    height, width = shape
    apex = rng.uniform(0.05, 0.3) * height
    y, x = np.mgrid[:height, :width]
    radius, angle = np.hypot(x - width / 2, y + apex), np.arctan2(x - width / 2, y + apex)
    return (radius > 1.3 * apex) & (radius < height + apex - 1) & (np.abs(angle) < rng.uniform(0.5, 0.72))


def _flow(pixels: Pixels, scan: Mask, hue: str, rng: Rng) -> Mask:
    """Paint vessels with a velocity map of one hue, aliasing where it is fastest; where it was painted."""
    height, width = scan.shape
    inside = np.argwhere(cv2.erode(scan.astype(np.uint8), np.ones((41, 41), np.uint8)))
    cy, cx = inside[rng.integers(len(inside))]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    bend = 14 * np.sin(x / rng.uniform(30, 70))
    distance = np.abs(y - cy + bend) / rng.uniform(26, 42)
    vessel = (distance < 1) & (np.abs(x - cx) < rng.uniform(90, 160)) & scan
    speed = np.clip(1 - distance**2, 0, 1) + 0.12 * rng.standard_normal((height, width)).astype(np.float32)
    speed = np.clip(cv2.GaussianBlur(speed, (0, 0), 1.2), 0, 1)
    full = {"red": (235, 60, 20), "blue": (30, 70, 240), "cyan": (40, 225, 235)}[hue]
    colour = (60 + 195 * speed[..., None]) / 255 * np.array(full, np.float32)
    pixels[vessel] = np.clip(colour[vessel], 0, 255).astype(np.uint8)
    return vessel


def _m_mode(shape: tuple[int, int], rng: Rng) -> Pixels:
    """(h, w): one scan line over time, layers that move with the heart."""
    height, width = shape
    line, time = speckle((height, 8), rng)[:, 3].astype(np.float32), np.arange(width)
    motion = 12 * np.abs(np.sin(time / rng.uniform(25, 60))) ** 3
    rows = np.clip(np.arange(height)[:, None] - motion[None], 0, height - 1).astype(int)
    return np.clip(line[rows] + 10 * rng.standard_normal(shape), 0, 255).astype(np.uint8)


def _spectrum(shape: tuple[int, int], rng: Rng) -> Pixels:
    """(h, w): a pulsed-wave Doppler envelope over its base line."""
    height, width = shape
    time = np.arange(width) / rng.uniform(70, 120)
    peak = (0.15 + 0.7 * np.exp(-6 * (time % 1))) * height * 0.8
    above = height * 0.85 - np.arange(height)[:, None]
    filled = np.clip(np.exp(-(((above - 0.75 * peak) / (0.3 * peak)) ** 2)) * (above > 0) * (above < peak), 0, 1)
    return np.clip(190 * filled * rng.gamma(3, 1 / 3, shape), 0, 255).astype(np.uint8)


def screen(rng: Rng, mode: str = "b", shift: float = 0.0) -> Screen:
    """A screen in one of the modes b, red, blue, cyan (colour flow), mmode, spectral, elastogram, contrast."""
    height, width = SIZES[rng.integers(len(SIZES))]
    top, left = int(rng.uniform(0.09, 0.14) * height), int(rng.uniform(0.12, 0.2) * width)
    h, w = int(0.78 * height), int(0.64 * width)
    b_height = h if mode not in ("mmode", "spectral") else int(0.5 * h)
    shape = _sector((b_height, w), rng) if rng.random() < 0.5 else np.ones((b_height, w), bool)
    pixels, scan = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool)
    scan[top : top + b_height, left : left + w] = shape
    pixels[top : top + b_height, left : left + w] = (speckle((b_height, w), rng, shift) * shape)[..., None]
    flow, pane = np.zeros_like(scan), (left, top, left + w, top + b_height)
    if mode in ("red", "blue", "cyan"):
        flow = _flow(pixels, scan, mode, rng)
    elif mode in ("mmode", "spectral"):
        pane = (left, top + b_height + 8, left + w, top + h)
        draw = _m_mode if mode == "mmode" else _spectrum
        pixels[pane[1] : pane[3], left : left + w] = draw((pane[3] - pane[1], w), rng)[..., None]
        scan[pane[1] : pane[3], left : left + w] = True
    elif mode == "elastogram":
        half = np.s_[top : top + b_height, left + w // 2 : left + w]
        stiffness = cv2.GaussianBlur(rng.integers(0, 256, (b_height, w - w // 2)).astype(np.uint8), (0, 0), 18)
        stiffness = cv2.normalize(stiffness, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
        colour = cv2.applyColorMap(stiffness, cv2.COLORMAP_JET)[:, :, ::-1]
        pixels[half] = (0.55 * colour + 0.45 * pixels[half]).astype(np.uint8) * shape[:, w // 2 :, None]
    elif mode == "contrast":
        tint = np.array((1.0, 0.72, 0.35))
        pixels[top : top + b_height, left : left + w] = pixels[top : top + b_height, left : left + w] * tint
    return Screen(pixels, scan, flow, pane)
