"""Trains the overlay network of cleaning: text and graphics drawn over simulated speckle, and over crops of real tissue.

    python benchmarks/train_overlay.py --out DIR [--minutes 11] [--tissue FOLDER] [--labelled mmotu_2d] [--seed 7]
        [--start benchmarks/weights/overlay.xml --rate 0.0015]

Speckle is the envelope of a filtered complex Gaussian field over a random map of tissue, compressed in many ways. Half of
the crops carry text, most of it 20 to 50 gray levels above what lies below; half carry graphics (`marks.py`), small ones
with their numbers too. Half of the crops are of real tissue where there is any: of a folder of pictures in which nothing is drawn (`--tissue`), and
of the labelled pictures of a data set (`--labelled`), with what a person saw drawn in them. Writes DIR/overlay.pt, overlay.xml and overlay.bin, and prints one JSON line;
`quantise_overlay.py` makes of these what cleaning uses.
"""

from __future__ import annotations

import argparse
import json
import string
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from labelled import contrast, ink_of, pictures
from lettering import FAMILY, GIVEN, face
from marks import mark
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import nn
from torch.nn import functional as F

from usfmae.core.annotate import Mark
from usfmae.core.clean.ocr import openvino
from usfmae.core.clean.overlay_net import features

Floats = NDArray[np.float32]
Rng = np.random.Generator

FIELD, CROP = 320, 128  # pixels of a simulated field, and of a training crop
FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "LiberationSans-Regular", "LiberationSans-Bold",
    "LiberationMono-Regular", "LiberationSerif-Regular", "FreeSans", "FreeMono", "FreeSerif", "DejaVuSansCondensed",
    "LiberationSansNarrow-Regular", "DejaVuSerif", "FreeSansBold",
)  # fmt: skip
SIGNS = string.ascii_uppercase * 2 + string.ascii_lowercase + string.digits * 2 + ".,-/:^"
BATCH, RATE = 24, 2.5e-3
WRITTEN = (Mark.IDENTIFIER, Mark.TEXT, Mark.DIGITS)


def tissue_map(rng: Rng) -> Floats:
    """How strongly each place scatters (FIELD, FIELD): a smooth field, layers, cysts and bright bodies."""
    smooth = cv2.GaussianBlur(rng.normal(size=(FIELD, FIELD)).astype(np.float32), (0, 0), rng.uniform(8, 40))
    scatter = np.exp(smooth * rng.uniform(0, 12))
    yy, xx = np.mgrid[:FIELD, :FIELD].astype(np.float32)
    for _ in range(rng.integers(0, 6)):
        wave = rng.uniform(0, 10) * np.sin(xx / rng.uniform(20, 90) + rng.uniform(0, 6))
        away = yy - rng.uniform(-0.2, 1.2) * FIELD - (xx - FIELD / 2) * np.tan(rng.normal(0, 0.25)) - wave
        broken = 0.4 + 0.6 * (np.sin(xx / rng.uniform(10, 60) + rng.uniform(0, 6)) > rng.uniform(-1, 0.6))
        scatter += rng.uniform(0.5, 8) * np.exp(-((away / rng.uniform(0.8, 6)) ** 2)) * broken
    for _ in range(rng.integers(0, 3)):
        x, y, a, b = [*rng.uniform(0, FIELD, 2).tolist(), rng.uniform(6, 60), rng.uniform(6, 40)]
        factor = rng.uniform(0.02, 0.4) if rng.random() < 0.7 else rng.uniform(2, 5)
        scatter *= np.where(((xx - x) / a) ** 2 + ((yy - y) / b) ** 2 < 1, factor, 1)
    return np.clip(scatter, 0.01, 30).astype(np.float32)


def speckle(rng: Rng) -> Floats:
    """A field of simulated tissue (FIELD, FIELD), 0..255, as one of many devices would show it."""
    field = rng.normal(size=(FIELD, FIELD, 2)).astype(np.float32)
    field = cv2.GaussianBlur(field, (0, 0), sigmaX=rng.uniform(0.6, 3.2), sigmaY=rng.uniform(0.6, 2.4))
    envelope = np.hypot(field[..., 0], field[..., 1])
    envelope = envelope / envelope.mean() * tissue_map(rng)
    if rng.random() < 0.6:
        gray = np.log(envelope + rng.uniform(0.02, 0.3))
        gray = (gray - gray.mean()) * rng.uniform(12, 48) + rng.uniform(15, 130)
    else:
        gray = envelope ** rng.uniform(0.25, 1)
        gray = gray / gray.mean() * rng.uniform(15, 110)
    gray = displayed(np.clip(gray, 0, 255).astype(np.float32), rng)
    depth = np.linspace(rng.uniform(0.6, 1.3), rng.uniform(0.3, 1.3), FIELD)[:, None]
    return np.clip(gray * depth, 0, 255).astype(np.float32)


def displayed(gray: Floats, rng: Rng) -> Floats:
    """What devices and codecs do to a field: smoothing, and sizes that are not its own."""
    size = (FIELD, FIELD)
    if rng.random() < 0.3:
        gray = cv2.medianBlur(gray.astype(np.uint8), int(rng.choice([3, 5]))).astype(np.float32)
    if rng.random() < 0.3:
        gray = cv2.bilateralFilter(gray, 5, rng.uniform(10, 40), 2).astype(np.float32)
    if rng.random() < 0.4:
        scale = rng.uniform(0.5, 0.9)
        small = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        gray = cv2.resize(small, size, interpolation=int(rng.choice([1, 2]))).astype(np.float32)
    if rng.random() < 0.3:
        side = int(FIELD / rng.uniform(1.2, 2.5))
        y, x = rng.integers(0, FIELD - side + 1, 2)
        gray = cv2.resize(gray[y : y + side, x : x + side], size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    return gray


@dataclass
class Canvas:
    """A crop while things are drawn on it, and where they are (CROP, CROP)."""

    gray: Floats
    text: Floats
    graphics: Floats


def phrase(rng: Rng) -> str:
    """A name, a date, a number, a measurement, or signs in no order."""
    draw = rng.random()
    if draw < 0.3:
        return f"{rng.choice(FAMILY)}{rng.choice([', ', ' ', '^'])}{rng.choice(GIVEN)}"
    if draw < 0.42:
        return f"{rng.integers(1, 32):02}.{rng.integers(1, 13):02}.{rng.integers(1930, 2025)}"
    if draw < 0.62:
        return short(rng)
    if draw < 0.72:
        return (
            f"{rng.choice(['1 D', 'D', '2 L', '+', 'Dist', 'x'])} {rng.uniform(0.1, 20):.2f}{rng.choice(['cm', ' mm'])}"
        )
    first, second = ("".join(rng.choice(list(SIGNS), int(rng.integers(2, 12)))) for _ in range(2))
    return f"{first} {second}" if rng.random() < 0.5 else first


def short(rng: Rng) -> str:
    """The number or letter that stands beside a caliper or a tick."""
    draw = rng.random()
    return str(rng.integers(1, 10) if draw < 0.6 else rng.integers(10, 25) if draw < 0.8 else rng.choice(list(SIGNS)))


def glyphs(text: str, rng: Rng, spacing: float) -> Floats:
    """Coverage (h, w) 0..1 of a line of text with its letters `spacing` times as far apart as usual."""
    size = int(rng.integers(7, 22) if rng.random() < 0.87 else rng.integers(22, 36))
    font = face(str(rng.choice(FACES)), size)
    starts, x = [], 2.0
    for sign in text:
        starts.append(x)
        x += font.getlength(sign) * spacing
    canvas = Image.new("L", (int(x) + 4, 2 * size + 6))
    draw = ImageDraw.Draw(canvas)
    for start, sign in zip(starts, text, strict=True):
        draw.text((start, size // 4), sign, fill=255, font=font)
    cover = np.asarray(canvas, np.float32) / 255
    rows, columns = (np.flatnonzero((cover > 0.1).any(axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros((0, 0), np.float32)
    return np.ascontiguousarray(cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def worn(cover: Floats, rng: Rng) -> Floats:
    """What screens, cameras and codecs do to letters (h, w): out of focus, lines of the screen missing, a raster, faded."""
    draw, (height, width) = rng.random(), cover.shape
    if draw < 0.16:
        return np.asarray(cv2.GaussianBlur(cover, (0, 0), rng.uniform(0.7, min(2.2, 0.6 + height / 12))), np.float32)
    rows, columns = np.mgrid[:height, :width]
    if draw < 0.23:
        return np.where(rows % rng.integers(2, 4) == 0, cover * rng.uniform(0, 0.5), cover).astype(np.float32)
    if draw < 0.26:
        return np.where((rows + columns) % 2 == 0, cover * rng.uniform(0, 0.5), cover).astype(np.float32)
    if draw < 0.32:
        faded = np.linspace(1, rng.uniform(0.15, 0.6), width)
        return np.asarray(cover * (faded if rng.random() < 0.5 else faded[::-1]), np.float32)
    return cover


def line_of(cover: Floats, spacing: float) -> Floats:
    """The whole line (h, w) that the letters of a coverage stand in."""
    height = cover.shape[0]
    reach = int(max(3, height * 0.9 * spacing)) | 1
    kernel = np.ones((height | 1 if spacing > 1 else reach, reach), np.uint8)
    wide = cv2.copyMakeBorder((cover > 0.3).astype(np.uint8), reach, reach, reach, reach, cv2.BORDER_CONSTANT)
    joined = cv2.morphologyEx(wide, cv2.MORPH_CLOSE, kernel)[reach:-reach, reach:-reach]
    return joined.astype(np.float32)


def turned(cover: Floats, line: Floats, rng: Rng) -> tuple[Floats, Floats]:
    """A third of the lines turned by quarters, mirrored or slanted."""
    draw = rng.random()
    if draw < 0.15:
        return np.rot90(cover), np.rot90(line)
    if draw < 0.2:
        return np.rot90(cover, 2), np.rot90(line, 2)
    if draw < 0.25:
        return cover[:, ::-1], line[:, ::-1]
    if draw < 0.33:
        height, width = cover.shape
        side = int(np.hypot(height, width)) + 2
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-25, 25), 1)
        matrix[:, 2] += ((side - width) / 2, (side - height) / 2)
        cover, line = (cv2.warpAffine(v, matrix, (side, side)).astype(np.float32) for v in (cover, line))
    return cover, line


def write(canvas: Canvas, rng: Rng, text: str = "", at: tuple[int, int] | None = None) -> None:
    """One line of text, wherever, its ends perhaps beyond the crop; or this text, upright at this place (x, y)."""
    apart = not text and rng.random() < 0.16
    spacing = float(rng.uniform(1.4, 3.6)) if apart else 1.0
    cover = glyphs(text or phrase(rng)[: 8 if apart else 40], rng, spacing)
    if not cover.size:
        return
    if rng.random() < 0.2:
        cover = (cover > 0.45).astype(np.float32)
    blur = float(rng.uniform(0.06, 0.16)) * cover.shape[0] if at is None and rng.random() < 0.15 else 0.0
    edge = int(2 + 2 * blur)
    line = np.asarray(
        cv2.dilate(cv2.copyMakeBorder(line_of(cover, spacing), *[edge] * 4, 0), np.ones((5, 3))), np.float32
    )
    cover = np.asarray(cv2.copyMakeBorder(cover, *[edge] * 4, 0), np.float32)
    cover = np.asarray(cv2.GaussianBlur(cover, (0, 0), max(0.7, blur)), np.float32) if blur else worn(cover, rng)
    (height, width), side = cover.shape, len(canvas.gray)
    if at is None:
        cover, line = turned(cover, line, rng)
        height, width = cover.shape
        y = int(rng.integers(-height // 3, max(side - height * 2 // 3, -height // 3) + 1))
        x = int(rng.integers(-width // 2, max(-width // 2 + 1, side - width // 2)))
    else:
        x, y = at[0] - (width if rng.random() < 0.3 else 0), at[1] - height // 2
        if not (x + width > 0 and x < side and y + height > 0 and y < side):
            return
    rows, columns = slice(max(0, y), min(side, y + height)), slice(max(0, x), min(side, x + width))
    part = slice(rows.start - y, rows.stop - y), slice(columns.start - x, columns.stop - x)
    cover, line = cover[part], line[part]
    if min(cover.shape) < 4 or not (cover > 0.3).any():
        return
    below = canvas.gray[rows, columns]
    below[:] = below * (1 - cover) + (_bright(below, rng) if blur else _level(below, rng)) * cover
    canvas.text[rows, columns] = np.maximum(canvas.text[rows, columns], line)


def _level(below: Floats, rng: Rng) -> Any:
    """The gray of a line: more often than not of low contrast, opaque or translucent; else bright, or dark."""
    level, draw = float(below.mean()), rng.random()
    if draw < 0.55:
        contrast = rng.uniform(22, 52)
        if rng.random() < 0.7:
            return min(255.0, level + contrast)
        share = contrast / max(60.0, 255 - level)
        return below * (1 - share) + 255 * share
    if draw < 0.86 or level < 35:
        return _bright(below, rng)
    return max(0.0, level - rng.uniform(35, 120))


def _bright(below: Floats, rng: Rng) -> float:
    """A gray that is read at a glance, out of focus too."""
    return max(min(255.0, float(below.mean()) + 70), float(rng.uniform(120, 255)))


def draw(canvas: Canvas, rng: Rng) -> None:
    """One graphic, bright or dark, some of its marks numbered."""
    layer, numbered = mark(len(canvas.gray), rng)
    covered = layer > 80
    if not covered.any():
        return
    below = float(canvas.gray[covered].mean())
    level = max(min(255.0, below + 50), float(rng.uniform(90, 255))) if rng.random() < 0.88 else max(0.0, below - 80)
    cover = layer / np.float32(255) * np.float32(1 if rng.random() < 0.7 else rng.uniform(0.5, 1))
    canvas.gray[:] = canvas.gray * (1 - cover) + level * cover
    canvas.graphics[:] = np.maximum(canvas.graphics, cv2.dilate(covered.astype(np.float32), np.ones((5, 5))))
    if rng.random() < 0.6:
        for number, (x, y) in enumerate(numbered, int(rng.integers(1, 9))):
            write(canvas, rng, str(number) if rng.random() < 0.8 else short(rng), (int(x), int(y)))


def draw_bar(canvas: Canvas, rng: Rng) -> None:
    """The bar of all gray levels that stands beside a scan, and now and then reaches into it."""
    side = len(canvas.gray)
    width, length = int(rng.integers(4, 18)), int(rng.integers(30, 2 * side))
    x, y = int(rng.integers(-4, side)), int(rng.integers(-length + 10, side - 10))
    levels = np.linspace(rng.uniform(180, 255), rng.uniform(0, 60), length)[:, None]
    bar = (levels if rng.random() < 0.8 else levels[::-1]) * np.ones((1, width))
    if rng.random() < 0.3:
        bar[[0, -1]] = bar[:, [0, -1]] = 220
    rows, columns = slice(max(0, y), min(side, y + length)), slice(max(0, x), min(side, x + width))
    canvas.gray[rows, columns] = bar[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
    canvas.graphics[rows, columns] = 1
    if rng.random() < 0.25:
        for plane in (canvas.gray, canvas.text, canvas.graphics):
            plane[:] = plane.T.copy()


def part_of(field: Canvas, rng: Rng) -> Canvas:
    """A square of a field as it may be shown: mirrored, brighter or darker, beside the black screen. It is larger or
    smaller than a crop, to whose size it is brought when it is drawn on."""
    side = int(CROP / rng.uniform(0.55, 1.25)) if rng.random() < 0.4 else CROP
    side = min(side, *field.gray.shape)
    y, x = (int(rng.integers(0, whole - side + 1)) for whole in field.gray.shape)
    across, down = 1 - 2 * int(rng.random() < 0.5), 1 - 2 * int(rng.random() < 0.2)
    planes = (plane[y : y + side, x : x + side][::down, ::across] for plane in (field.gray, field.text, field.graphics))
    canvas = Canvas(*(plane.copy() for plane in planes))
    canvas.gray = np.clip(canvas.gray * rng.uniform(0.6, 1.25) + rng.uniform(-8, 8), 0, 255).astype(np.float32)
    if rng.random() < 0.15:  # a far field
        canvas.gray *= np.float32(rng.uniform(0.15, 0.6))
    if rng.random() < 0.2:  # the black screen beside the scan
        angle, (rows, columns) = rng.uniform(0, 2 * np.pi), np.mgrid[:side, :side] - side / 2
        lit = columns * np.cos(angle) + rows * np.sin(angle) + rng.uniform(-20, 60) > 0
        for plane in (canvas.gray, canvas.text, canvas.graphics):
            plane *= lit
    return canvas


def example(fields: list[Canvas], tissue: list[Canvas], rng: Rng) -> tuple[Floats, Floats]:
    """What the network sees of one crop (2, CROP, CROP), and the truth (2, CROP / 4, CROP / 4)."""
    pool = tissue if tissue and rng.random() < 0.5 else fields
    canvas = part_of(pool[int(rng.integers(len(pool)))], rng)
    if rng.random() < 0.07:
        draw_bar(canvas, rng)
    for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.5 else 0):
        draw(canvas, rng)
    if rng.random() < 0.55:
        for _ in range(1 if rng.random() < 0.75 else 2):
            write(canvas, rng)
    seen = canvas.gray
    if rng.random() < 0.2:
        seen = cv2.GaussianBlur(seen, (0, 0), rng.uniform(0.4, 0.9))
    if len(seen) != CROP:
        smooth = cv2.INTER_AREA if len(seen) > CROP else int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC]))
        seen = cv2.resize(seen, (CROP, CROP), interpolation=smooth)
    pixels = np.clip(seen, 0, 255).round().astype(np.uint8)
    if rng.random() < 0.6:
        quality = int(rng.integers(75, 97) if rng.random() < 0.7 else rng.integers(25, 75))
        coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        pixels = np.asarray(cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE), np.uint8)
    small = (CROP // 4, CROP // 4)
    truth = [cv2.resize(v, small, interpolation=cv2.INTER_AREA) for v in (canvas.text, canvas.graphics)]
    return features(pixels), np.stack(truth)


def _convolution(channels: int, out: int, stride: int = 1, spread: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, 3, stride, spread, spread, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU(True))


class OverlayNet(nn.Module):
    """Three halvings, two dilated convolutions at the bottom, one step up: logits of text and graphics (B, 2, H/4, W/4)."""

    def __init__(self) -> None:
        super().__init__()
        self.s1 = nn.Sequential(_convolution(2, 16, 2), _convolution(16, 16))
        self.s2 = nn.Sequential(_convolution(16, 32, 2), _convolution(32, 32))
        self.s3 = nn.Sequential(_convolution(32, 48, 2), _convolution(48, 48))
        self.s4 = nn.Sequential(_convolution(48, 48, 1, 2), _convolution(48, 48, 1, 4))
        self.l2, self.l3 = nn.Conv2d(32, 24, 1), nn.Conv2d(48, 24, 1)
        self.h, self.o = _convolution(24, 24), nn.Conv2d(24, 2, 1)
        nn.init.constant_(self.o.bias, -3.0)  # type: ignore[arg-type]  # most places hold nothing

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        middle = self.s2(self.s1(seen))
        deep = self.s3(middle)
        deep = deep + self.s4(deep)
        joined = F.relu(self.l2(middle) + F.interpolate(self.l3(deep), scale_factor=2.0, mode="nearest"))
        logits: torch.Tensor = self.o(self.h(joined))
        return logits


def loss_of(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Focal cross entropy and Dice of each of the two maps."""
    share, drawn = torch.sigmoid(logits), (truth > 0.3).float()
    entropy = F.binary_cross_entropy_with_logits(logits, drawn, reduction="none")
    wrong = ((1 - share) * drawn + share * (1 - drawn)).detach().clamp(0.02) ** 0.7
    over = (0, 2, 3)
    dice = 1 - (2 * (share * drawn).sum(over) + 1) / ((share + drawn).sum(over) + 1)
    return 4 * (entropy * (1 + drawn) * wrong).mean() + 0.5 * dice.mean()


def train(network: OverlayNet, fields: list[Canvas], tissue: list[Canvas], options: argparse.Namespace) -> int:
    """Steps made in so many minutes of processor time, the rate falling along a cosine."""
    rng, minutes = np.random.default_rng(options.seed + 1), options.minutes
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), options.rate, weight_decay=1e-4)
    start, step = time.process_time(), 0
    while (done := (time.process_time() - start) / (60 * minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = options.rate * min(1, step / 100) * (0.5 + 0.5 * np.cos(np.pi * done)) + 1e-5
        seen, truth = zip(*(example(fields, tissue, rng) for _ in range(BATCH)), strict=True)
        inputs = torch.from_numpy(np.stack(seen)).to(memory_format=torch.channels_last)
        loss = loss_of(network(inputs), torch.from_numpy(np.stack(truth)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
    return step


def save(network: OverlayNet, folder: Path) -> None:
    """The weights as PyTorch's file, and in half precision as OpenVINO's."""
    torch.save(network.state_dict(), folder / "overlay.pt")
    network.eval()
    model = openvino().convert_model(network, example_input=torch.zeros(1, 2, 64, 64), input=[1, 2, -1, -1])
    openvino().save_model(model, folder / "overlay.xml", compress_to_fp16=True)


def plain(gray: Floats) -> Canvas:
    """A picture (H, W) in which nothing is drawn."""
    return Canvas(gray, np.zeros_like(gray), np.zeros_like(gray))


def clean_tissue(folder: Path) -> list[Canvas]:
    """The largest channel of every picture in a folder, in which nothing is drawn."""
    pictures = [cv2.imread(str(path)) for path in sorted(folder.iterdir())]
    return [plain(p.max(2).astype(np.float32)) for p in pictures if p is not None and min(p.shape[:2]) >= CROP]


def labelled_tissue(root: Path, dataset: str) -> list[Canvas]:
    """The largest channel of every labelled picture of a data set, and what a person saw drawn in it."""
    found = []
    for one in (one for one in pictures("tuning") if one.dataset == dataset):
        pixels = one.pixels(root)
        canvas, signal = plain(pixels.max(2).astype(np.float32)), contrast(pixels)
        for shape in one.picture.shapes:
            inside = shape.mask(*canvas.gray.shape)
            if shape.label in WRITTEN:
                canvas.text[inside] = 1
            elif shape.label is Mark.BAR and shape.box:
                canvas.graphics[inside] = 1
            else:
                ink = cv2.dilate(ink_of(signal, inside).astype(np.float32), np.ones((5, 5)))
                np.maximum(canvas.graphics, ink, out=canvas.graphics)
        found.append(canvas)
    return [canvas for canvas in found if min(canvas.gray.shape) >= CROP]


def continued(file: Path, seen: torch.Tensor) -> OverlayNet:
    """The network with the weights of a file: PyTorch's, or OpenVINO's, whose normalisations are folded into the
    convolutions before them. Those are made anew from what is `seen` (B, 2, H, W), so that training can go on."""
    network = OverlayNet().eval()
    if file.suffix == ".pt":
        network.load_state_dict(torch.load(file, weights_only=True))
        return network
    halves = [
        torch.from_numpy(np.array(op.get_data(), np.float32))
        for op in openvino().Core().read_model(file).get_ordered_ops()
        if op.get_type_name() == "Constant" and op.get_element_type().get_type_name() == "f16"
    ]
    kernels, offsets = ([h for h in halves if (h.shape[0] == 1) == flat] for flat in (False, True))
    modules = dict(network.named_modules())
    for name in ("s1.0", "s1.1", "s2.0", "s2.1", "l2", "s3.0", "s3.1", "s4.0", "s4.1", "l3", "h", "o"):
        kernel, offset = kernels.pop(0), offsets.pop(0).flatten()
        layer: Any = modules[name] if isinstance(modules[name], nn.Conv2d) else modules[f"{name}.0"]
        layer.weight.data.copy_(kernel)
        if layer is modules[name]:
            layer.bias.data.copy_(offset)
            continue
        normal: Any = modules[f"{name}.1"]
        before: list[torch.Tensor] = []
        hook = normal.register_forward_pre_hook(lambda _, given, into=before: into.append(given[0]))
        with torch.no_grad():
            network(seen)
        hook.remove()
        spread, mean = torch.var_mean(before[0], (0, 2, 3), correction=0)
        normal.running_mean.copy_(mean)
        normal.running_var.copy_(spread)
        normal.weight.data.copy_((spread + normal.eps).sqrt())
        normal.bias.data.copy_(offset + mean)
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=11)
    parser.add_argument("--tissue", type=Path, help="a folder of pictures in which nothing is drawn")
    parser.add_argument("--labelled", default="", help="a data set of truth/, of the tuning half")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--start", type=Path, help="weights to go on from, at a rate of their own")
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(options.seed)
    tissue = clean_tissue(options.tissue) if options.tissue else []
    tissue += labelled_tissue(options.data, options.labelled) if options.labelled else []
    rng = np.random.default_rng(options.seed)
    fields = [plain(speckle(rng)) for _ in range(300)]
    network = OverlayNet()
    if options.start:
        network = continued(
            options.start, torch.from_numpy(np.stack([example(fields, tissue, rng)[0] for _ in range(96)]))
        )
    steps = train(network.to(memory_format=torch.channels_last), fields, tissue, options)  # type: ignore[call-overload]
    options.out.mkdir(parents=True, exist_ok=True)
    save(network, options.out)
    print(json.dumps({"steps": steps, "examples": steps * BATCH, "tissue": len(tissue), "minutes": options.minutes}))


if __name__ == "__main__":
    main()
