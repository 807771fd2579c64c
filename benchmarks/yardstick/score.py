"""Scores what a cleaner left of a part of the yardstick.

    python score.py PART CLEANED [--json] [--enter "NAME VERSION" --command "HOW IT WAS RUN"]

CLEANED holds the pictures that the cleaner keeps, under the names of PART/pictures and of the same size; a picture that
is not there was kept back and leaks nothing. A string counts where it can be seen at all in the drawn picture: Tesseract
reads it, or its ink stands out of its surroundings by their standard deviation. It is left where Tesseract reads it
(60 % alike, turned upright, enlarged, both polarities), or where a quarter of its contrast to its surroundings still
stands, which no choice of reading program changes. --enter writes the totals to the leaderboard (`board.py`). Needs NumPy,
OpenCV, pytesseract.
"""

from __future__ import annotations

import argparse
import json
import unicodedata
from collections import defaultdict
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import board
import cv2
import numpy as np
import pytesseract
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

ALIKE = 0.6  # share of alike letters from which a reading counts
VISIBLE = 1.0  # standard deviations of the surroundings from which a string can be seen
SIGNAL = 0.25  # share of the drawn signal from which a string is left
CHANGED = 8  # gray levels from which a pixel is changed
MARGIN = 5  # pixels


def load(path: Path, flags: int = cv2.IMREAD_COLOR) -> Pixels:
    pixels = cv2.imread(str(path), flags)
    if pixels is None:
        raise SystemExit(f"{path}: no picture")
    return np.asarray(pixels, np.uint8)


def folded(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in plain if c.isalnum())


def contrast(pixels: Pixels, ink: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean of the ink (h, w) less the mean around it, of the three channels of a string's box (h, w, 3)."""
    channels = pixels.astype(np.float64)
    return np.asarray(channels[ink].mean(0) - channels[~ink].mean(0))


def signal_left(drawn: Pixels, reference: Pixels, cleaned: Pixels, ink: NDArray[np.bool_]) -> float:
    """Share of the drawn string's contrast in the cleaned picture, all (h, w, 3) of the string's box; 1: untouched.

    What the fill does to speckle under the letters and between them alike does not count.
    """
    if ink.all() or not ink.any():
        return float(np.abs(cleaned.astype(int) - drawn).mean() < 1)  # a photograph: there whole, or not
    below = contrast(reference, ink)
    signal, rest = contrast(drawn, ink) - below, contrast(cleaned, ink) - below
    return float(rest @ signal / max(1e-9, signal @ signal))


def stands_out(drawn: Pixels, ink: NDArray[np.bool_]) -> float:
    """Contrast of the ink (h, w) in the drawn box (h, w, 3), in standard deviations of what surrounds it; 9 at most."""
    if ink.all() or not ink.any():
        return 9.0
    spread = drawn.astype(np.float64)[~ink].std(0)
    return float(min(9.0, (np.abs(contrast(drawn, ink)) / np.maximum(1.0, spread)).max()))


def read_by_tesseract(cleaned: Pixels, string: dict[str, Any]) -> bool:
    x0, y0, x1, y1 = string["box"]
    crop = cleaned[max(0, y0 - MARGIN) : y1 + MARGIN, max(0, x0 - MARGIN) : x1 + MARGIN].max(2)
    if int(crop.max()) - int(crop.min()) < 3 or not folded(string["text"]).isascii():
        return False  # one colour; and other scripts are judged by their signal
    upright = {"": 0, "90": -1, "180": 2}.get(string["turn"], 0)
    crop = crop[:, ::-1] if string["turn"] == "mirror" else np.rot90(crop, upright)
    low, high = np.percentile(crop, (1, 99.5))
    view = np.clip((crop.astype(float) - low) * 255 / max(1.0, high - low), 0, 255).astype(np.uint8)
    view = cv2.resize(np.ascontiguousarray(view), None, fx=2.5, fy=2.5, interpolation=cv2.INTER_CUBIC)
    truth = folded(string["text"])
    for picture in (view, 255 - view):
        reading = folded(pytesseract.image_to_string(picture, config="--psm 7"))
        if SequenceMatcher(None, reading, truth, autojunk=False).ratio() >= ALIKE:
            return True
    return False


def window(string: dict[str, Any]) -> tuple[slice, slice]:
    x0, y0, x1, y1 = string["box"]
    return np.s_[y0:y1, x0:x1]


def visible(drawn: Pixels, ink: Pixels, string: dict[str, Any]) -> bool:
    box = window(string)
    return stands_out(drawn[box], ink[box] > 0) >= VISIBLE or read_by_tesseract(drawn, string)


def score(part: Path, folder: Path) -> dict[str, dict[str, float]]:
    """A row of counts for each kind."""
    rows: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for item in json.loads((part / "truth.json").read_text())["items"]:
        row, file = rows[item["kind"]], f"{item['name']}.png"
        row["pictures"] += 1
        drawn, reference = (load(part / layer / file) for layer in ("pictures", "reference"))
        ink, scan = (load(part / layer / file, cv2.IMREAD_GRAYSCALE) for layer in ("ink", "scan"))
        strings = [string for string in item["strings"] if visible(drawn, ink, string)]
        row["strings"] += len(strings)
        if not (folder / file).is_file():
            row["kept_back"] += 1
            continue
        cleaned = load(folder / file)
        if cleaned.shape != drawn.shape:
            raise SystemExit(f"{folder / file}: {cleaned.shape[:2]}, the part's picture is {drawn.shape[:2]}")
        for string in strings:
            box = window(string)
            by_signal = signal_left(drawn[box], reference[box], cleaned[box], ink[box] > 0) >= SIGNAL
            row["left_by_signal"] += by_signal
            row["left"] += by_signal or read_by_tesseract(cleaned, string)
        untouched = (scan > 0) & (cv2.dilate(ink, np.ones((2 * MARGIN + 1,) * 2, np.uint8)) == 0)
        changed = np.abs(cleaned.astype(int) - reference).max(2) > CHANGED
        share = float((changed & untouched).sum() / max(1, untouched.sum()))
        row["tissue_changed_sum"] += share
        row["tissue_changed_worst"] = max(row["tissue_changed_worst"], share)
        graphics = ink == 255
        row["graphics"] += int(graphics.sum())
        row["graphics_removed"] += int((graphics & (np.abs(cleaned.astype(int) - drawn).max(2) > CHANGED)).sum())
    return {kind: _finished(dict(row)) for kind, row in rows.items()}


def _finished(row: dict[str, float]) -> dict[str, float]:
    kept = row["pictures"] - row.get("kept_back", 0)
    row["tissue_changed_mean"] = round(row.pop("tissue_changed_sum", 0.0) / max(1, kept), 5)
    row["tissue_changed_worst"] = round(row.get("tissue_changed_worst", 0.0), 5)
    removed, graphics = row.pop("graphics_removed", 0.0), row.pop("graphics", 0.0)
    if graphics:
        row["graphics_removed"] = round(removed / graphics, 4)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", type=Path)
    parser.add_argument("cleaned", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--enter", metavar="NAME", help="name and version of the cleaner, for the leaderboard")
    parser.add_argument("--command", default="", help="how it was run, for the leaderboard")
    options = parser.parse_args()
    rows = score(options.part, options.cleaned)
    if options.enter:
        truth = json.loads((options.part / "truth.json").read_text())
        board.enter(board.entry_of(rows, options.enter, truth, options.command, options.cleaned))
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'kind':18s}{'pictures':>9s}{'kept back':>11s}{'strings':>9s}{'left':>6s}{'changed %':>11s}{'worst %':>9s}")
    for kind, row in rows.items():
        counts = (int(row["pictures"]), int(row.get("kept_back", 0)), int(row["strings"]), int(row.get("left", 0)))
        shares = f"{100 * row['tissue_changed_mean']:11.2f}{100 * row['tissue_changed_worst']:9.2f}"
        print(f"{kind:18s}{counts[0]:9d}{counts[1]:11d}{counts[2]:9d}{counts[3]:6d}{shares}")


if __name__ == "__main__":
    main()
