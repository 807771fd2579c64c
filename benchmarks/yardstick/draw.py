"""What devices and people burn into a screen, each with its truth: strings in every state, and measuring graphics."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from simulate import Mask, Pixels, Rng, Screen

Cover = NDArray[np.float32]
Colour = tuple[int, int, int]

GRAPHICS = 255  # label of measuring graphics in the ink picture; strings are numbered from 1
COLOURS: dict[str, Colour] = {
    "yellow": (255, 235, 40), "cyan": (60, 230, 240), "green": (60, 220, 70), "red": (235, 50, 40),
    "blue": (60, 90, 245), "magenta": (230, 60, 220), "orange": (250, 160, 40),
}  # fmt: skip
LATIN = (
    "HOFFMANN, GRETA", "O'CONNOR LIAM", "Vasquez, Pilar", "IBRAHIM^YUSUF", "Lindqvist Maja", "DOB 04/11/1957",
    "14.02.1983", "2019-07-23", "MRN 4417802", "PID: 0093125", "Ward 7B  Dr. Eze", "MERCY GENERAL", "ACC 22871-04",
    "08:42:17", "Kim, Ji-woo", "DE LA CRUZ ANA",
)  # fmt: skip
SCRIPTS = {"arabic": "محمد العلي", "cyrillic": "Соколова Ирина", "greek": "Παπαδάκης Νίκος", "han": "王小明 患者"}


@dataclass
class Picture:
    """A screen with ink on it: pixels and clean (H, W, 3), ink (H, W) labels, the strings by their label."""

    screen: Screen
    pixels: Pixels
    ink: Pixels
    strings: list[dict[str, object]] = field(default_factory=list)

    @classmethod
    def on(cls, screen: Screen) -> Picture:
        return cls(screen, screen.pixels.copy(), np.zeros(screen.scan.shape, np.uint8))


@cache
def fonts(language: str) -> tuple[str, ...]:
    """Files of the installed scalable fonts that have the language, sorted; all of them are drawn from."""
    listed = subprocess.run(
        ["fc-list", f":lang={language}:scalable=True", "file"], capture_output=True, text=True, check=True
    ).stdout
    return tuple(sorted(line.split(":")[0] for line in listed.splitlines() if ".ttf" in line or ".otf" in line))


def glyphs(text: str, size: int, rng: Rng, language: str = "en", spacing: int = 0) -> Cover:
    """(h, w) coverage 0..1 of a string in a random installed font; `spacing` pixels between the letters."""
    files = fonts(language)
    font = ImageFont.truetype(files[rng.integers(len(files))], size) if files else ImageFont.load_default(size)
    parts, x = [(text, 0)] if not spacing else [], 0
    for letter in text if spacing else "":
        parts.append((letter, x))
        x += round(font.getlength(letter)) + spacing
    width = x if spacing else round(font.getlength(text))
    canvas = Image.new("L", (width + size, 2 * size))
    for part, left in parts:
        ImageDraw.Draw(canvas).text((left + 2, size // 3), part, fill=255, font=font)
    cover = np.asarray(canvas, np.float32) / 255
    rows, columns = np.nonzero(cover.max(1) > 0.2)[0], np.nonzero(cover.max(0) > 0.2)[0]
    return cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def place(allowed: Mask, taken: Mask, shape: tuple[int, int], rng: Rng) -> tuple[int, int] | None:
    """Top left corner of a free place of this shape within the mask, or none."""
    (h, w), (height, width) = shape, allowed.shape
    free = allowed & ~taken
    sums = cv2.integral(free.astype(np.uint8))
    if h + 2 >= height or w + 2 >= width:
        return None
    counts = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    corners = np.argwhere(counts == h * w)
    return tuple(int(v) for v in corners[rng.integers(len(corners))]) if len(corners) else None  # type: ignore[return-value]


def blend(picture: Picture, cover: Cover, corner: tuple[int, int], colour: Colour, label: int) -> None:
    """Lay a coverage map in one colour onto the pixels and book it as ink."""
    window = np.s_[corner[0] : corner[0] + cover.shape[0], corner[1] : corner[1] + cover.shape[1]]
    mixed = picture.pixels[window] * (1 - cover[..., None]) + np.array(colour, np.float32) * cover[..., None]
    picture.pixels[window] = np.clip(np.round(mixed), 0, 255).astype(np.uint8)
    picture.ink[window][cover > 0.3 * cover.max()] = label


def write(
    picture: Picture, text: str, cover: Cover, allowed: Mask, colour: Colour | float, rng: Rng, turn: str = ""
) -> bool:
    """One string at a free place. `colour` as a number is that contrast to what lies below. `turn`: 90, 180 or mirror."""
    turned = {"90": lambda a: np.rot90(a), "180": lambda a: np.rot90(a, 2), "mirror": lambda a: a[:, ::-1]}
    cover = np.ascontiguousarray(turned[turn](cover)) if turn else cover
    corner = place(allowed, cv2.dilate(picture.ink, np.ones((13, 13), np.uint8)) > 0, cover.shape, rng)
    if corner is None:
        return False
    if not isinstance(colour, tuple):
        below = picture.pixels[corner[0] : corner[0] + cover.shape[0], corner[1] : corner[1] + cover.shape[1]].mean()
        level = round(min(255.0, float(below) + colour))
        colour = (level, level, level)
    label = len(picture.strings) + 1
    blend(picture, cover, corner, colour, label)
    y, x = corner
    picture.strings.append({"text": text, "box": [x, y, x + cover.shape[1], y + cover.shape[0]], "turn": turn})
    return True


def _pane(picture: Picture) -> Mask:
    x0, y0, x1, y1 = picture.screen.pane
    mask = np.zeros(picture.screen.scan.shape, bool)
    mask[y0:y1, x0:x1] = True
    return mask & picture.screen.scan


def _text(rng: Rng) -> str:
    return str(rng.choice(LATIN))


def banner(picture: Picture, rng: Rng) -> None:
    """Three to six strings outside the scan, white or tinted."""
    outside = cv2.dilate(picture.screen.scan.astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
    for _ in range(int(rng.integers(3, 7))):
        text, tone = _text(rng), int(rng.integers(150, 256))
        write(picture, text, glyphs(text, int(rng.integers(11, 22)), rng), outside, (tone, tone, tone), rng)


def tissue(picture: Picture, rng: Rng) -> None:
    text = _text(rng)
    write(picture, text, glyphs(text, int(rng.integers(13, 30)), rng), _pane(picture), (255, 255, 255), rng)


def small(picture: Picture, rng: Rng) -> None:
    text = _text(rng)
    write(picture, text, glyphs(text, int(rng.integers(9, 12)), rng), _pane(picture), (255, 255, 255), rng)


def low_contrast(picture: Picture, rng: Rng) -> None:
    text = _text(rng)
    write(picture, text, glyphs(text, int(rng.integers(15, 30)), rng), _pane(picture), float(rng.uniform(18, 40)), rng)


def translucent(picture: Picture, rng: Rng) -> None:
    """Large letters through which the speckle shows."""
    text = _text(rng)
    cover = glyphs(text, int(rng.integers(26, 44)), rng) * np.float32(rng.uniform(0.25, 0.45))
    write(picture, text, cover, _pane(picture), (255, 255, 255), rng)


def coloured(picture: Picture, rng: Rng) -> None:
    text, turn = _text(rng), str(rng.choice(("", "90", "180", "mirror")))
    colour = COLOURS[str(rng.choice(list(COLOURS)))]
    write(picture, text, glyphs(text, int(rng.integers(14, 26)), rng), _pane(picture), colour, rng, turn)


def on_flow(picture: Picture, rng: Rng) -> None:
    """A white or coloured string that lies on colour flow, or crosses its edge."""
    text = _text(rng)[:9].strip()
    colour = (255, 255, 255) if rng.random() < 0.5 else COLOURS[str(rng.choice(list(COLOURS)))]
    near = cv2.dilate(picture.screen.flow.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    write(picture, text, glyphs(text, int(rng.integers(12, 20)), rng), near & picture.screen.scan, colour, rng)


def far_field(picture: Picture, rng: Rng) -> None:
    """A faint string in the lowest fifth, which is dimmed as a far field is."""
    x0, y0, x1, y1 = picture.screen.pane
    deep = np.zeros(picture.screen.scan.shape, bool)
    deep[y1 - (y1 - y0) // 4 : y1, x0:x1] = True
    for pixels in (picture.pixels, picture.screen.pixels):
        pixels[deep] = (pixels[deep] * 0.25).astype(np.uint8)
    text = _text(rng)
    write(picture, text, glyphs(text, int(rng.integers(13, 24)), rng), deep, float(rng.uniform(16, 40)), rng)


def spaced(picture: Picture, rng: Rng) -> None:
    text = _text(rng)[:8].strip().upper()
    cover = glyphs(text, int(rng.integers(14, 24)), rng, spacing=int(rng.integers(12, 34)))
    write(picture, text, cover, _pane(picture), (255, 255, 255), rng)


def script(picture: Picture, rng: Rng) -> None:
    """A name in another script, where a font for it is installed."""
    languages = {"arabic": "ar", "cyrillic": "ru", "greek": "el", "han": "zh"}
    usable = [name for name in SCRIPTS if fonts(languages[name])]
    if usable:
        name = str(rng.choice(usable))
        cover = glyphs(SCRIPTS[name], int(rng.integers(16, 26)), rng, languages[name])
        write(picture, SCRIPTS[name], cover, _pane(picture), (255, 255, 255), rng)


def graphics(picture: Picture, rng: Rng) -> None:
    """Two calipers with a dotted line, an arrow, a ruler at the side."""
    inside = np.argwhere(cv2.erode(_pane(picture).astype(np.uint8), np.ones((31, 31), np.uint8)))
    layer = np.zeros(picture.ink.shape, np.uint8)
    (ya, xa), (yb, xb), (yc, xc) = inside[rng.integers(len(inside), size=3)]
    arm = int(rng.integers(4, 9))
    for x, y in ((xa, ya), (xb, yb)):
        cv2.line(layer, (int(x) - arm, int(y)), (int(x) + arm, int(y)), 255, 1)
        cv2.line(layer, (int(x), int(y) - arm), (int(x), int(y) + arm), 255, 1)
    for t in np.linspace(0.05, 0.95, max(4, int(np.hypot(xa - xb, ya - yb) / 7))):
        cv2.circle(layer, (round(xa + t * (xb - xa)), round(ya + t * (yb - ya))), 1, 255, -1)
    angle = rng.uniform(0, 2 * np.pi)
    tail = (int(xc + 24 * np.cos(angle)), int(yc + 24 * np.sin(angle)))
    cv2.arrowedLine(layer, tail, (int(xc), int(yc)), 255, 2, cv2.LINE_AA, 0, 0.4)
    x0, y0, _, y1 = picture.screen.pane
    for number, y in enumerate(range(y0, y1, 20)):
        cv2.line(layer, (x0 - 12, y), (x0 - (2 if number % 5 == 0 else 7), y), 230, 1)
    colour = COLOURS[str(rng.choice(list(COLOURS)))] if rng.random() < 0.6 else (255, 255, 255)
    blend(picture, layer.astype(np.float32) / 255, (0, 0), colour, GRAPHICS)


Drawing = Callable[[Picture, Rng], None]

# kind -> the mode of the screen and what is drawn on it
STILLS: dict[str, tuple[str, Drawing | None]] = {
    "clean": ("b", None),
    "clean-flow": ("red", None),
    "clean-elastogram": ("elastogram", None),
    "clean-contrast": ("contrast", None),
    "banner": ("b", banner),
    "tissue": ("b", tissue),
    "small": ("b", small),
    "low-contrast": ("b", low_contrast),
    "translucent": ("b", translucent),
    "coloured": ("b", coloured),
    "flow-red": ("red", on_flow),
    "flow-blue": ("blue", on_flow),
    "flow-cyan": ("cyan", on_flow),
    "m-mode": ("mmode", tissue),
    "spectral": ("spectral", tissue),
    "far-field": ("b", far_field),
    "spaced": ("b", spaced),
    "script": ("b", script),
    "graphics": ("b", graphics),
}
