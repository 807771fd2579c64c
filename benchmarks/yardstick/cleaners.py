"""Runs a cleaner over a part of the yardstick and writes what it keeps.

    python cleaners.py NAME PART OUT [--spacy-model en_core_web_lg]

NAME: none, tesseract, rapidocr, presidio, usfmae-safe, usfmae-paper. Each needs its own package installed
(pytesseract, rapidocr, presidio-image-redactor with a model of spaCy, best in an environment of its own, usfmae). A cleaner of your own is a function
(name, frames) -> pictures to keep, or None where one is kept back; add it to CLEANERS, or write the folder yourself.
OUT/seconds.json holds processor seconds for each picture, of programs that were started too, import and warm-up left out.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_THREAD_LIMIT", "1")

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Cleaner = Callable[[Sequence[Pixels]], list[Pixels | None]]  # RGB frames of one still or clip, in order


def none() -> Cleaner:
    return lambda frames: list(frames)


def _painted_over(frame: Pixels, boxes: Sequence[tuple[int, int, int, int]]) -> Pixels:
    """Boxes x0, y0, x1, y1 inpainted by Telea's method, as the published pipelines do."""
    mask = np.zeros(frame.shape[:2], np.uint8)
    for x0, y0, x1, y1 in boxes:
        mask[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2] = 255
    return np.asarray(cv2.inpaint(frame, mask, 3, cv2.INPAINT_TELEA), np.uint8) if mask.any() else frame


def tesseract() -> Cleaner:
    """Every word box of Tesseract's sparse mode, inpainted."""
    import pytesseract

    def clean(frames: Sequence[Pixels]) -> list[Pixels | None]:
        cleaned: list[Pixels | None] = []
        for frame in frames:
            table = pytesseract.image_to_data(frame, config="--psm 11", output_type=pytesseract.Output.DICT)
            sides = zip(table["left"], table["top"], table["width"], table["height"], table["text"], strict=True)
            boxes = [(x, y, x + w, y + h) for x, y, w, h, text in sides if text.strip()]
            cleaned.append(_painted_over(frame, boxes))
        return cleaned

    return clean


def rapidocr() -> Cleaner:
    """Every text box of PP-OCR (DBNet detector), inpainted."""
    from rapidocr import RapidOCR

    engine = RapidOCR()

    def boxes(frame: Pixels) -> list[tuple[int, int, int, int]]:
        quads = engine(np.ascontiguousarray(frame[:, :, ::-1])).boxes
        corners = [] if quads is None else [np.asarray(quad) for quad in quads]
        return [(*map(int, q.min(0)), *map(int, np.ceil(q.max(0)))) for q in corners]  # type: ignore[misc]

    return lambda frames: [_painted_over(frame, boxes(frame)) for frame in frames]


def presidio(model: str = "en_core_web_lg") -> Cleaner:
    """Microsoft Presidio's image redactor as it comes: it blanks what it takes for personal data."""
    from PIL import Image
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider
    from presidio_image_redactor import ImageAnalyzerEngine, ImageRedactorEngine

    languages = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": model}]}
    analyzer = AnalyzerEngine(nlp_engine=NlpEngineProvider(nlp_configuration=languages).create_engine())
    engine = ImageRedactorEngine(image_analyzer_engine=ImageAnalyzerEngine(analyzer_engine=analyzer))
    return lambda frames: [np.asarray(engine.redact(Image.fromarray(f), fill=(0, 0, 0)), np.uint8) for f in frames]


def usfmae(profile: str) -> Cleaner:
    from usfmae.core.clean import clean, clean_clip
    from usfmae.core.config.clean import CleanSettings
    from usfmae.core.types import CleanImage, Frame

    settings = CleanSettings(profile=profile)

    def kept(frames: Sequence[Pixels]) -> list[Pixels | None]:
        if len(frames) == 1:
            results = [clean(frames[0], settings)]
        else:
            run = (Frame(frame, index=i, time=i / 3) for i, frame in enumerate(frames))
            results = list(clean_clip(run, settings))
        return [result.pixels if isinstance(result, CleanImage) else None for result in results]

    return kept


CLEANERS: dict[str, Callable[[], Cleaner]] = {
    "none": none,
    "tesseract": tesseract,
    "rapidocr": rapidocr,
    "presidio": presidio,
    "usfmae-safe": lambda: usfmae("safe"),
    "usfmae-paper": lambda: usfmae("paper"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CLEANERS)
    parser.add_argument("part", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--spacy-model", default="en_core_web_lg", help="of presidio's analyzer")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    groups: dict[str, list[str]] = defaultdict(list)
    for item in json.loads((options.part / "truth.json").read_text())["items"]:
        groups[item["clip"] or item["name"]].append(item["name"])
    cleaner = presidio(options.spacy_model) if options.name == "presidio" else CLEANERS[options.name]()
    seconds = {}
    cleaner([np.zeros((240, 320, 3), np.uint8)])  # load what is loaded at first use
    for group, names in groups.items():
        paths = [options.part / "pictures" / f"{name}.png" for name in names]
        frames = [np.ascontiguousarray(cv2.imread(str(path))[:, :, ::-1]) for path in paths]
        began = sum(os.times()[:4])  # with the processes that were started and have ended
        cleaned = cleaner(frames)
        seconds[group] = round((sum(os.times()[:4]) - began) / len(frames), 4)
        for name, pixels in zip(names, cleaned, strict=True):
            if pixels is not None:
                path = options.out / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), np.ascontiguousarray(pixels[:, :, ::-1]))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "seconds.json").write_text(json.dumps(seconds, indent=1))


if __name__ == "__main__":
    main()
