"""Draws a part of the yardstick: simulated screens with strings and graphics burnt in, and the truth about them.

    python generate.py OUT --seed 7 [--count 10] [--kinds tissue,low-contrast] [--portrait FACE.png ...]

Writes OUT/pictures/NAME.png (clips: NAME/0000.png, ...), OUT/reference/... the same without ink, OUT/ink/... labels
(0 none, 1.. the string of that number, 255 graphics), OUT/scan/... where the scan is, and OUT/truth.json.
Needs NumPy, OpenCV, Pillow and fontconfig's `fc-list`; nothing of usfmae. The same seed and fonts draw the same part.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from draw import STILLS, Picture, blend, glyphs
from simulate import Pixels, Rng, screen

CLIPS = ("moving", "appearing")
FRAMES = 16


def still(kind: str, rng: Rng) -> Picture:
    mode, drawing = STILLS[kind]
    picture = Picture.on(screen(rng, mode))
    if drawing is not None:
        drawing(picture, rng)
    return picture


def face(portrait: Pixels, rng: Rng) -> Picture:
    """A photograph beside the scan, as webcams of examination rooms and patient cards leave it."""
    picture = Picture.on(screen(rng))
    side = int(rng.integers(72, 120))
    small = cv2.resize(portrait, (side, side), interpolation=cv2.INTER_AREA)
    height, width = picture.ink.shape
    y, x = (int(rng.integers(0, height - side)), 4) if rng.random() < 0.5 else (4, int(rng.integers(0, width - side)))
    picture.pixels[y : y + side, x : x + side] = small
    picture.ink[y : y + side, x : x + side] = 1
    picture.strings.append({"text": "", "box": [x, y, x + side, y + side], "turn": ""})
    return picture


def clip(kind: str, rng: Rng) -> Iterator[Picture]:
    """Frames of one moving tissue with a name: moving 1 to 9 pixels a frame, or shown in the middle third only."""
    seed, text = int(rng.integers(2**31)), "HOFFMANN, GRETA"
    cover = glyphs(text, int(rng.integers(14, 26)), rng)
    low = rng.random() < 0.5
    speed = rng.uniform(1, 9) * np.array((np.cos(a := rng.uniform(0, 2 * np.pi)), np.sin(a)))
    start = None
    for number in range(FRAMES):
        picture = Picture.on(screen(np.random.default_rng(seed), shift=2.5 * np.sin(number / 3)))
        x0, y0, x1, y1 = picture.screen.pane
        room = np.array((y1 - y0 - cover.shape[0], x1 - x0 - cover.shape[1]))
        if (room < 2).any():
            return
        start = rng.uniform(0.3, 0.7, 2) * room if start is None else start
        shown = kind == "moving" or FRAMES // 3 <= number < 2 * FRAMES // 3
        if shown:
            # Reflect at the borders, so that the name stays in the picture.
            offset = np.abs((start + number * speed * (kind == "moving") + room) % (2 * room) - room).astype(int)
            y, x = int(y0 + offset[0]), int(x0 + offset[1])
            under = float(picture.pixels[y : y + cover.shape[0], x : x + cover.shape[1]].mean())
            level = round(min(255.0, under + 60)) if low else 255
            blend(picture, cover, (y, x), (level, level, level), 1)
            picture.strings.append({"text": text, "box": [x, y, x + cover.shape[1], y + cover.shape[0]], "turn": ""})
        yield picture


def save(root: Path, name: str, picture: Picture) -> None:
    layers = {
        "pictures": picture.pixels[:, :, ::-1],
        "reference": picture.screen.pixels[:, :, ::-1],
        "ink": picture.ink,
        "scan": picture.screen.scan.astype(np.uint8) * 255,
    }
    for folder, pixels in layers.items():
        path = root / folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), pixels):
            raise SystemExit(f"{path}: could not be written")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=10, help="pictures of each kind")
    parser.add_argument("--kinds", help="only these, separated by commas")
    parser.add_argument("--portrait", type=Path, nargs="*", default=[], help="photographs of faces that may be used")
    options = parser.parse_args()
    kinds = (*STILLS, *CLIPS, *(("face",) if options.portrait else ()))
    wanted = tuple(options.kinds.split(",")) if options.kinds else kinds
    if unknown := set(wanted) - set(kinds):
        parser.error(f"unknown kinds: {', '.join(sorted(unknown))}")
    items = []
    for kind in wanted:
        for number in range(options.count):
            rng, name = np.random.default_rng((options.seed, kinds.index(kind), number)), f"{kind}-{number:03d}"
            if kind in CLIPS:
                for index, picture in enumerate(clip(kind, rng)):
                    save(options.out, f"{name}/{index:04d}", picture)
                    items.append(
                        {"name": f"{name}/{index:04d}", "kind": kind, "clip": name, "strings": picture.strings}
                    )
                continue
            if kind == "face":
                portrait = cv2.imread(str(options.portrait[number % len(options.portrait)]))
                picture = face(np.ascontiguousarray(portrait[:, :, ::-1]), rng)
            else:
                picture = still(kind, rng)
            save(options.out, name, picture)
            items.append({"name": name, "kind": kind, "clip": None, "strings": picture.strings})
    truth = {"version": 1, "seed": options.seed, "count": options.count, "items": items}
    (options.out / "truth.json").write_text(json.dumps(truth, indent=1, ensure_ascii=False))
    print(f"{len(items)} pictures of {len(wanted)} kinds in {options.out}")


if __name__ == "__main__":
    main()
