"""What cleaning does to overlays it was not made for: dark names, and names in other scripts, over tissue.

    python benchmarks/scripts.py --json [--data DIR] [--half tuning] [--strings 20] [--only KIND ...]

For each kind, strings that can be read before cleaning are drawn, one to a scan: dark and light Latin names, and light
ones in Chinese, Japanese, Korean, Cyrillic, Greek and Arabic. Counted are those that the PP-OCR recogniser (for
Latin also Tesseract) can still read, those whose frame was kept back, and the share of the ink that was changed. The
recogniser reads no Korean, Cyrillic, Greek or Arabic: for these only the ink is telling.
"""

from __future__ import annotations

import argparse
import json
import os
import unicodedata
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_THREAD_LIMIT", "1")

import cv2
import numpy as np
import scans
from attack import SIMILARITY, readable
from lettering import glyphs, words
from numpy.typing import NDArray
from overlays import Painted, Text, blend
from PIL import Image, ImageDraw, ImageFont

from usfmae.core.clean import clean
from usfmae.core.clean.ocr import recognise
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import CleanImage

Pixels = NDArray[np.uint8]
Rng = np.random.Generator

FALLBACK = "/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf"  # apt install fonts-droid-fallback
FREE = "/usr/share/fonts/truetype/freefont/FreeSans.ttf"
DEJAVU = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"
NAMES = {
    "chinese": (FALLBACK, ["王小明", "李秀英", "张伟东", "刘洋洋", "陈静怡", "杨桂兰", "赵建国", "黄丽华"]),
    "japanese": (FALLBACK, ["佐藤太郎", "鈴木花子", "高橋健一", "田中美咲", "渡辺さくら", "山本ひろし"]),
    "korean": (FALLBACK, ["김민준", "이서연", "박지훈", "최수빈", "정하윤", "강도현"]),
    "cyrillic": (FREE, ["Иванова", "Петренко", "Шевченко", "Соколов", "Кузнецова", "Попов"]),
    "greek": (FREE, ["Παπαδόπουλος", "Γεωργίου", "Νικολάου", "Δημητρίου"]),
    "arabic": (DEJAVU, ["محمد علي", "فاطمة حسن", "عبد الله", "مريم خالد"]),
}

UNREAD = ("korean", "cyrillic", "greek", "arabic")


@dataclass
class Tally:
    strings: int = 0
    readable: int = 0
    kept_back: int = 0
    ink: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        return {
            "strings": self.strings,
            "readable": self.readable,
            "kept_back": self.kept_back,
            "ink_changed": round(float(np.mean(self.ink)), 3) if self.ink else None,
        }


def drawn(kind: str, rng: Rng) -> tuple[str, NDArray[np.float32]]:
    """A name and its coverage (h, w) 0..1."""
    if kind in ("light", "dark"):
        name = words(rng, True)
        return name, glyphs(rng, name, "tuning", 14, 28)
    file, names = NAMES[kind]
    name = str(rng.choice(names))
    font = ImageFont.truetype(file, int(rng.integers(16, 29)))
    left, top, right, bottom = (int(v) for v in font.getbbox(name))
    canvas = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(canvas).text((1 - left, 1 - top), name, fill=255, font=font)
    return name, np.asarray(canvas, np.float32) / 255


def over_tissue(scan: Pixels, kind: str, rng: Rng) -> tuple[Painted, NDArray[np.bool_]] | None:
    """The scan with one name, 70 gray levels apart from the tissue below at least, and its ink (H, W)."""
    scale = max(1.0, 400 / min(scan.shape[:2]))
    scan = cv2.resize(scan, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    name, cover = drawn(kind, rng)
    (h, w), (height, width) = cover.shape, scan.shape[:2]
    for _ in range(60):
        if h + 20 >= height or w + 20 >= width:
            return None
        y, x = int(rng.integers(10, height - h - 10)), int(rng.integers(10, width - w - 10))
        below = float(scan[y : y + h, x : x + w].mean())
        if (below > 80) if kind == "dark" else (10 < below < 150):
            break
    else:
        return None
    pixels = scan.copy()
    blend(pixels, x, y, cover, np.full(3, 0 if kind == "dark" else 255, np.float32))
    ink = np.zeros(scan.shape[:2], bool)
    ink[y : y + h, x : x + w] = cover > 0.5
    text = Text(name, (x, y, x + w, y + h), "tissue")
    return Painted(scan, pixels, np.ones(ink.shape, bool), [text]), ink


def read(pixels: Pixels, text: Text) -> bool:
    """Whether a name can be read; in scripts other than Latin by the recogniser alone, letter by letter."""
    if unicodedata.name(text.text[0]).startswith(("LATIN", "DIGIT")):
        return readable(pixels, text)
    x0, y0, x1, y1 = text.box
    crop = pixels[max(0, y0 - 4) : y1 + 4, max(0, x0 - 4) : x1 + 4]
    enlarged = cv2.resize(crop, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    seen = recognise(enlarged, "f32")[0]
    return SequenceMatcher(None, seen, text.text, autojunk=False).ratio() >= SIMILARITY


def tally(kind: str, sources: list[scans.Source], wanted: int) -> Tally:
    """So many names of one kind, over scan after scan; where nothing is readable at first, all drawn ones count."""
    counts, settings = Tally(), CleanSettings()
    legible = kind not in UNREAD
    for number in range(20 * wanted):
        rng = np.random.default_rng((number, len(kind)))
        made = over_tissue(scans.still(sources[number % len(sources)], rng.random()), kind, rng)
        if made is None or (legible and not read(made[0].pixels, made[0].strings[0])):
            continue
        picture, ink = made
        counts.strings += 1
        result = clean(picture.pixels, settings)
        if isinstance(result, CleanImage):
            counts.readable += read(result.pixels, picture.strings[0])
            counts.ink.append(float(result.mask[ink].mean()))
        else:
            counts.kept_back += 1
        if counts.strings == wanted:
            break
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("USFMAE_TEST_DATA", "../shared/data")))
    parser.add_argument("--half", choices=("tuning", "scoring", "fresh"), default="tuning")
    parser.add_argument("--strings", type=int, default=20)
    parser.add_argument("--only", nargs="+", default=("light", "dark", *NAMES))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    sources = scans.sources(options.data, options.half)
    report = {k: tally(k, sources, options.strings).row() for k in options.only}
    print(json.dumps(report) if options.json else "\n".join(f"{k:10s}{v}" for k, v in report.items()))


if __name__ == "__main__":
    main()
