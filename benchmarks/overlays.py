"""Draws what scanners burn in: banners, names over tissue, calipers, dotted lines, outlines, flow, on clean scans.

Every picture comes with its truth: the clean screen below, the strings with their places, the ink of each kind.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from lettering import glyphs, words
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Rng = np.random.Generator

BRIGHT = ((255, 255, 255), (255, 255, 0), (0, 255, 255), (120, 255, 120), (220, 220, 220), (255, 170, 60))


@dataclass(frozen=True)
class Text:
    """A string and its place: columns x0..x1, rows y0..y1."""

    text: str
    box: tuple[int, int, int, int]
    kind: str  # "outside", "tissue", "low"


@dataclass
class Painted:
    """A screen with overlays and its truth."""

    clean: Pixels  # (H, W, 3) the screen before anything was drawn
    pixels: Pixels  # (H, W, 3) with overlays
    region: Mask  # (H, W) where the scan is
    strings: list[Text] = field(default_factory=list)
    ink: dict[str, Mask] = field(default_factory=dict)  # kind -> (H, W)
    flow: Mask | None = None  # (H, W) colour-flow pixels of the clean screen


def blend(pixels: Pixels, x: int, y: int, cover: NDArray[np.float32], colour: NDArray[np.float32]) -> None:
    h, w = cover.shape
    part = pixels[y : y + h, x : x + w].astype(np.float32)
    mixed = part * (1 - cover[:, :, None]) + colour * cover[:, :, None]
    pixels[y : y + h, x : x + w] = np.clip(mixed.round(), 0, 255).astype(np.uint8)


def _free(taken: Mask, allowed: Mask, size: tuple[int, int], rng: Rng, tries: int = 60) -> tuple[int, int] | None:
    (h, w), (height, width) = size, allowed.shape
    for _ in range(tries):
        if h + 8 >= height or w + 8 >= width:
            return None
        y, x = int(rng.integers(4, height - h - 4)), int(rng.integers(4, width - w - 4))
        if (
            allowed[y - 2 : y + h + 2, x - 2 : x + w + 2].all()
            and not taken[y - 4 : y + h + 4, x - 4 : x + w + 4].any()
        ):
            return x, y
    return None


def add_string(picture: Painted, taken: Mask, rng: Rng, half: str, kind: str) -> None:
    """One string outside the region, over tissue with normal contrast (>= 70 gray levels), or with low (18..40)."""
    identifier = kind != "tissue" or rng.random() < 0.7
    text = words(rng, identifier)
    size = (11, 26) if kind == "outside" else (13, 30)
    cover = glyphs(rng, text, half, *size)
    allowed = picture.region if kind != "outside" else ~cv2.dilate(picture.region.astype(np.uint8), np.ones((5, 5))) > 0
    if kind == "outside":
        allowed = cv2.dilate(picture.region.astype(np.uint8), np.ones((5, 5))) == 0
    place = _free(taken, allowed, cover.shape, rng)
    if place is None:
        return
    x, y = place
    h, w = cover.shape
    below = float(picture.pixels[y : y + h, x : x + w].mean())
    if kind == "low":
        contrast = rng.uniform(18, 40)
        colour = np.full(3, min(255.0, below + contrast), np.float32)
        if rng.random() < 0.5:  # translucent: the speckle shows through
            colour, cover = np.full(3, 255, np.float32), cover * np.float32(contrast / max(60.0, 255 - below))
    else:
        colour = np.array(BRIGHT[rng.integers(len(BRIGHT))], np.float32)
        if kind == "tissue" and colour @ (0.299, 0.587, 0.114) - below < 70:
            colour = np.array((255, 255, 255) if below < 185 else (0, 0, 0), np.float32)
        if kind == "tissue" and rng.random() < 0.2:  # a dark edge, as many devices draw
            blend(picture.pixels, x + 1, y + 1, cover, np.zeros(3, np.float32))
    blend(picture.pixels, x, y, cover, colour)
    taken[y : y + h, x : x + w] = True
    picture.strings.append(Text(text, (x, y, x + w, y + h), kind))


def _drawn(picture: Painted, kind: str, layer: Pixels, colour: tuple[int, int, int]) -> None:
    """Blend a coverage layer 0..255 in one colour and book the visible part as ink of `kind`."""
    before = picture.pixels.copy()
    blend(picture.pixels, 0, 0, layer.astype(np.float32) / 255, np.array(colour, np.float32))
    visible = (np.abs(picture.pixels.astype(int) - before).max(2) > 24) & (layer > 100)
    picture.ink[kind] = picture.ink.get(kind, np.zeros(layer.shape, bool)) | visible


def _inner_point(region: Mask, rng: Rng, margin: int = 20) -> tuple[int, int] | None:
    inside = cv2.erode(region.astype(np.uint8), np.ones((2 * margin + 1,) * 2)) > 0
    inside[:margin] = inside[-margin:] = inside[:, :margin] = inside[:, -margin:] = False
    ys, xs = np.nonzero(inside)
    if not len(ys):
        return None
    i = int(rng.integers(len(ys)))
    return int(xs[i]), int(ys[i])


def add_measurement(picture: Painted, rng: Rng, line: bool) -> None:
    """Two calipers (+ or x, arm 4..9) and, where asked, the dotted line between them."""
    ends = [_inner_point(picture.region, rng) for _ in range(2)]
    if None in ends or np.hypot(*(np.array(ends[0]) - ends[1])) < 50:  # type: ignore[arg-type]
        return
    colour = BRIGHT[rng.integers(4)]
    marks, dots = (np.zeros(picture.region.shape, np.uint8) for _ in range(2))
    arm, diagonal, thick = int(rng.integers(4, 10)), rng.random() < 0.4, int(rng.integers(1, 3))
    for x, y in ends:  # type: ignore[misc]
        for dx, dy in ((arm, arm), (arm, -arm)) if diagonal else ((arm, 0), (0, arm)):
            cv2.line(marks, (x - dx, y - dy), (x + dx, y + dy), 255, thick)
    if line:
        (xa, ya), (xb, yb) = ends  # type: ignore[misc]
        length, step = float(np.hypot(xb - xa, yb - ya)), float(rng.uniform(4, 9))
        for t in np.arange(arm + 3, length - arm - 3, step) / length:
            x, y = round(xa + t * (xb - xa)), round(ya + t * (yb - ya))
            dots[y : y + thick, x : x + thick] = 255
        _drawn(picture, "dotted", dots, colour)
    _drawn(picture, "caliper", marks, colour)


def add_outline(picture: Painted, rng: Rng) -> None:
    """A coloured ellipse or hand-drawn closed curve, one or two pixels wide."""
    centre = _inner_point(picture.region, rng, 40)
    if centre is None:
        return
    layer = np.zeros(picture.region.shape, np.uint8)
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    rx, ry = rng.uniform(15, 38, 2)
    wobble = 1 + 0.12 * np.sin(3 * angles + rng.uniform(0, 6)) * (rng.random() < 0.6)
    points = np.stack([centre[0] + rx * wobble * np.cos(angles), centre[1] + ry * wobble * np.sin(angles)], 1)
    cv2.polylines(layer, [points.round().astype(np.int32)], True, 255, int(rng.integers(1, 3)), cv2.LINE_AA)
    colour = ((255, 255, 0), (0, 255, 0), (255, 60, 60), (0, 220, 255), (255, 0, 255))[rng.integers(5)]
    _drawn(picture, "outline", layer, colour)


def add_arrow(picture: Painted, rng: Rng) -> None:
    tip = _inner_point(picture.region, rng, 24)
    if tip is None:
        return
    layer = np.zeros(picture.region.shape, np.uint8)
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(15, 22)
    tail = (round(tip[0] + length * np.cos(angle)), round(tip[1] + length * np.sin(angle)))
    cv2.arrowedLine(layer, tail, tip, 255, 2, cv2.LINE_AA, 0, 0.4)
    _drawn(picture, "arrow", layer, BRIGHT[rng.integers(4)])


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    encoded = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[:, :, ::-1])


def _sector(shape: tuple[int, int], rng: Rng) -> Mask:
    height, width = shape
    depth = rng.uniform(0.1, 0.25) * height
    apex = (width / 2, -depth)
    yy, xx = np.mgrid[:height, :width]
    radius, angle = np.hypot(xx - apex[0], yy - apex[1]), np.arctan2(xx - apex[0], yy - apex[1])
    half_angle = min(0.75, np.arctan2(width / 2, depth + 0.45 * height))
    return (radius > depth * 1.15) & (radius < depth + height) & (np.abs(angle) < half_angle)


def screen(scan: Pixels, rng: Rng) -> Painted:
    """A scan as it is, or on a device's black screen with room for banners; cut to a sector half of the time."""
    height, width = scan.shape[:2]
    if rng.random() < 0.2:
        scale = max(1.0, 300 / min(height, width))
        scan = cv2.resize(scan, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
        return Painted(scan.copy(), scan.copy(), np.ones(scan.shape[:2], bool))
    rows, columns = ((600, 800), (768, 1024), (480, 640))[rng.choice(3, p=(0.6, 0.2, 0.2))]
    scale = min(rng.uniform(0.62, 0.8) * rows / height, 0.72 * columns / width)
    scan = cv2.resize(scan, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    h, w = scan.shape[:2]
    y, x = int(rng.integers(50, rows - h - 20)), int(rng.integers(90, max(91, columns - w - 90)))
    shape = _sector((h, w), rng) if rng.random() < 0.5 else np.ones((h, w), bool)
    clean, region = np.zeros((rows, columns, 3), np.uint8), np.zeros((rows, columns), bool)
    clean[y : y + h, x : x + w] = np.where(shape[:, :, None], scan, 0)
    region[y : y + h, x : x + w] = shape
    return Painted(clean, clean.copy(), region)


def add_flow(picture: Painted, patch: Pixels, rng: Rng) -> None:
    """Real colour-flow pixels (h, w, 3), zero where there is none, laid over the tissue of the clean screen."""
    scale = rng.uniform(0.9, 1.6)
    patch = cv2.resize(patch, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    lit = cv2.blur(picture.clean.max(2), (9, 9)) > 8  # flow is shown in vessels within visible tissue
    place = _free(np.zeros_like(picture.region), picture.region & lit, patch.shape[:2], rng)
    if place is None:
        return
    window = np.s_[place[1] : place[1] + patch.shape[0], place[0] : place[0] + patch.shape[1]]
    coloured = patch.max(2) > 0
    for pixels in (picture.clean, picture.pixels):
        pixels[window][coloured] = patch[coloured]
    picture.flow = np.zeros(picture.region.shape, bool)
    picture.flow[window] = coloured


def furniture(picture: Painted, rng: Rng) -> None:
    """Gray bar, ruler ticks, a banner's coloured ground: beside the region, where devices put them."""
    columns = picture.region.shape[1]
    ys, xs = np.nonzero(picture.region)
    right = min(columns - 24, int(xs.max()) + 12)
    if rng.random() < 0.6 and right + 14 < columns:
        bar = np.linspace(255, 0, 120).astype(np.uint8)[:, None, None]
        picture.pixels[60:180, right : right + 12] = bar
    if rng.random() < 0.6 and int(xs.min()) > 12:
        for y in range(int(ys.min()), int(ys.max()), 22):
            picture.pixels[y : y + 2, int(xs.min()) - 9 : int(xs.min()) - 3] = 230
    if rng.random() < 0.3:
        picture.pixels[:30] = (40, 60, 110)


def paint(scan: Pixels, rng: Rng, half: str, patch: Pixels | None = None) -> Painted:
    """One annotated screen: strings outside and over tissue, one or two measurements, outline, arrow, JPEG for half."""
    picture = screen(scan, rng)
    if patch is not None:
        add_flow(picture, patch, rng)
    on_screen = not picture.region.all()
    if on_screen:
        furniture(picture, rng)
    taken = picture.flow.copy() if picture.flow is not None else np.zeros(picture.region.shape, bool)
    for kind, count in (("tissue", 3), ("low", 1), ("outside", 12 if on_screen else 0)):
        for _ in range(count):
            add_string(picture, taken, rng, half, kind)
    busy = picture.region & ~cv2.dilate(taken.astype(np.uint8), np.ones((25, 25))).astype(bool)
    whole, picture.region = picture.region, busy
    add_measurement(picture, rng, line=rng.random() < 0.7)
    if rng.random() < 0.5:
        add_outline(picture, rng)
    if rng.random() < 0.3:
        add_arrow(picture, rng)
    picture.region = whole
    if rng.random() < 0.5:
        picture.pixels = jpeg(picture.pixels, int(rng.integers(72, 96)))
    return picture
