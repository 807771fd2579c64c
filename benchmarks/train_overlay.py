"""Trains the overlay network of cleaning: text and graphics drawn over simulated speckle, and over crops of real tissue.

    python benchmarks/train_overlay.py --out DIR [--minutes 11] [--tissue FOLDER] [--start WEIGHTS.pt] [--seed 7]

Speckle is the envelope of a filtered complex Gaussian field over a random map of tissue, compressed in many ways. Half of
the crops carry text, most of it 20 to 50 gray levels above what lies below; a third carry graphics. Where `--tissue` names
a folder of pictures, squares of them in which nothing is drawn are mixed in, so that the network knows real tissue. One
core does it in a quarter of an hour. Writes DIR/overlay.pt, overlay.xml and overlay.bin, and prints one JSON line.
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
from lettering import FAMILY, GIVEN, face
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import nn
from torch.nn import functional as F

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
    """A name, a date, or signs in no order."""
    draw = rng.random()
    if draw < 0.4:
        return f"{rng.choice(FAMILY)}{rng.choice([', ', ' ', '^'])}{rng.choice(GIVEN)}"
    if draw < 0.55:
        return f"{rng.integers(1, 32):02}.{rng.integers(1, 13):02}.{rng.integers(1930, 2025)}"
    first, second = ("".join(rng.choice(list(SIGNS), int(rng.integers(2, 12)))) for _ in range(2))
    return f"{first} {second}" if rng.random() < 0.5 else first


def glyphs(text: str, rng: Rng, spacing: float) -> Floats:
    """Coverage (h, w) 0..1 of a line of text with its letters `spacing` times as far apart as usual."""
    size = int(rng.integers(9, 22) if rng.random() < 0.85 else rng.integers(22, 36))
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


def write(canvas: Canvas, rng: Rng) -> None:
    """One line of text, wherever, its ends perhaps beyond the crop."""
    apart = rng.random() < 0.16
    spacing = float(rng.uniform(1.4, 3.6)) if apart else 1.0
    cover = glyphs(phrase(rng)[: 8 if apart else 40], rng, spacing)
    if not cover.size:
        return
    if rng.random() < 0.2:
        cover = (cover > 0.45).astype(np.float32)
    line = np.asarray(
        cv2.dilate(cv2.copyMakeBorder(line_of(cover, spacing), 2, 2, 2, 2, 0), np.ones((5, 3))), np.float32
    )
    cover = worn(np.asarray(cv2.copyMakeBorder(cover, 2, 2, 2, 2, 0), np.float32), rng)
    cover, line = turned(cover, line, rng)
    height, width = cover.shape
    y = int(rng.integers(-height // 3, max(CROP - height * 2 // 3, -height // 3) + 1))
    x = int(rng.integers(-width // 2, max(-width // 2 + 1, CROP - width // 2)))
    rows, columns = slice(max(0, y), min(CROP, y + height)), slice(max(0, x), min(CROP, x + width))
    part = slice(rows.start - y, rows.stop - y), slice(columns.start - x, columns.stop - x)
    cover, line = cover[part], line[part]
    if min(cover.shape) < 4 or not (cover > 0.3).any():
        return
    below = canvas.gray[rows, columns]
    below[:] = below * (1 - cover) + _level(below, rng) * cover
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
        return max(min(255.0, level + 70), rng.uniform(120, 255))
    return max(0.0, level - rng.uniform(35, 120))


def mark(rng: Rng) -> NDArray[np.uint8]:
    """One graphic (CROP, CROP) 0..255: line, caliper, dotted line, ellipse, arrow, ruler or box."""
    layer = np.zeros((CROP, CROP), np.uint8)
    (x, y), (x1, y1) = rng.integers(0, CROP, (2, 2)).tolist()
    thick, smooth = int(rng.integers(1, 3)), cv2.LINE_AA if rng.random() < 0.5 else cv2.LINE_8
    kind = str(rng.choice(["line", "caliper", "dots", "ellipse", "arrow", "arrow", "ruler", "box"]))
    if kind == "line":
        cv2.line(layer, (x, y), (x if rng.random() < 0.5 else x1, y1), 255, thick, smooth)
    elif kind == "caliper":
        arm = int(rng.integers(4, 10))
        one, other = ((arm, 0), (0, arm)) if rng.random() < 0.5 else ((arm, arm), (arm, -arm))
        for dx, dy in (one, other):
            cv2.line(layer, (x - dx, y - dy), (x + dx, y + dy), 255, thick, smooth)
    elif kind == "dots":
        length, side = max(1.0, float(np.hypot(x1 - x, y1 - y))), int(rng.integers(1, 4))
        for t in np.arange(0, length, rng.uniform(4, 11)) / length:
            row, column = int(y + t * (y1 - y)), int(x + t * (x1 - x))
            layer[row : row + side, column : column + side] = 255
    elif kind == "ellipse":
        axes = int(rng.integers(6, 40)), int(rng.integers(6, 40))
        cv2.ellipse(layer, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, 255, thick, smooth)
    elif kind == "arrow":
        _arrow(layer, np.array([x, y]), rng, smooth)
    elif kind == "ruler":
        gap, length, width = int(rng.integers(7, 34)), int(rng.integers(2, 10)), int(rng.integers(1, 3))
        every = int(rng.choice([0, 5, 10]))
        for number, row in enumerate(range(int(rng.integers(0, gap)), CROP, gap)):
            layer[row : row + width, x : x + length + 4 * bool(every and number % every == 0)] = 255
        layer = np.ascontiguousarray(layer.T) if rng.random() < 0.5 else layer
    else:
        cv2.rectangle(layer, (x, y), (x1, y1), 255, thick)
    return layer


def _arrow(layer: NDArray[np.uint8], tail: NDArray[np.int64], rng: Rng, smooth: int) -> None:
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(12, 34)
    along = np.array([np.cos(angle), np.sin(angle)])
    tip = tail + length * along
    start, end = ([int(v) for v in point.round()] for point in (tail.astype(float), tip))
    if rng.random() < 0.6:
        cv2.arrowedLine(layer, start, end, 255, int(rng.integers(1, 4)), smooth, 0, float(rng.uniform(0.25, 0.5)))
        return
    neck, side = tip - rng.uniform(6, 14) * along, rng.uniform(3, 8) * np.array([-along[1], along[0]])
    head = np.array([tip, neck + side, neck - side]).round().astype(np.int32)
    if rng.random() < 0.6:
        cv2.fillPoly(layer, [head], 255)
    else:
        cv2.polylines(layer, [head], True, 255, 1)
    if rng.random() < 0.6:
        cv2.line(layer, start, [int(v) for v in neck.round()], 255, 1, smooth)


def draw(canvas: Canvas, rng: Rng) -> None:
    """One graphic, bright or dark."""
    layer = mark(rng)
    covered = layer > 127
    if not covered.any():
        return
    below = float(canvas.gray[covered].mean())
    level = max(min(255.0, below + 70), float(rng.uniform(110, 255))) if rng.random() < 0.85 else max(0.0, below - 80)
    cover = layer / np.float32(255) * np.float32(1 if rng.random() < 0.7 else rng.uniform(0.5, 1))
    canvas.gray[:] = canvas.gray * (1 - cover) + level * cover
    canvas.graphics[:] = np.maximum(canvas.graphics, cv2.dilate((layer > 80).astype(np.float32), np.ones((3, 3))))


def example(fields: list[Floats], tissue: list[Floats], rng: Rng) -> tuple[Floats, Floats]:
    """What the network sees of one crop (2, CROP, CROP), and the truth (2, CROP / 4, CROP / 4)."""
    pool = tissue if tissue and rng.random() < 0.45 else fields
    field = pool[int(rng.integers(len(pool)))]
    y, x = (int(rng.integers(0, side - CROP + 1)) for side in field.shape)
    gray = field[y : y + CROP, x : x + CROP]
    gray = gray[:, ::-1] if rng.random() < 0.5 else gray
    gray = gray[::-1] if rng.random() < 0.2 else gray
    gray = np.clip(gray * rng.uniform(0.6, 1.25) + rng.uniform(-8, 8), 0, 255).astype(np.float32)
    if rng.random() < 0.15:  # a far field
        gray *= np.float32(rng.uniform(0.15, 0.6))
    if rng.random() < 0.2:  # the black screen beside the scan
        angle = rng.uniform(0, 2 * np.pi)
        rows, columns = np.mgrid[:CROP, :CROP] - CROP / 2
        gray *= columns * np.cos(angle) + rows * np.sin(angle) + rng.uniform(-20, 60) > 0
    canvas = Canvas(gray, np.zeros_like(gray), np.zeros_like(gray))
    for _ in range(int(rng.integers(1, 3)) if rng.random() < 0.4 else 0):
        draw(canvas, rng)
    if rng.random() < 0.68:
        for _ in range(1 if rng.random() < 0.75 else 2):
            write(canvas, rng)
    pixels = np.clip(canvas.gray, 0, 255).round().astype(np.uint8)
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


def train(network: OverlayNet, tissue: list[Floats], options: argparse.Namespace) -> int:
    """Steps made in so many minutes of processor time, the rate falling along a cosine."""
    rng, minutes = np.random.default_rng(options.seed), options.minutes
    fields = [speckle(rng) for _ in range(300)]
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


def squares(folder: Path | None) -> list[Floats]:
    """The largest channel of every picture in a folder, as far as it is large enough."""
    if folder is None:
        return []
    pictures = [cv2.imread(str(path)) for path in sorted(folder.iterdir())]
    return [p.max(2).astype(np.float32) for p in pictures if p is not None and min(p.shape[:2]) >= CROP]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=11)
    parser.add_argument("--tissue", type=Path)
    parser.add_argument("--start", type=Path, help="weights to go on from, at a rate of their own")
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    network = OverlayNet().to(memory_format=torch.channels_last)
    if options.start:
        network.load_state_dict(torch.load(options.start, weights_only=True))
    tissue = squares(options.tissue)
    steps = train(network, tissue, options)
    options.out.mkdir(parents=True, exist_ok=True)
    save(network, options.out)
    print(json.dumps({"steps": steps, "examples": steps * BATCH, "tissue": len(tissue), "minutes": options.minutes}))


if __name__ == "__main__":
    main()
