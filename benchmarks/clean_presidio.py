"""Microsoft Presidio's image redactor and the safe profile on the same annotated pictures: which strings stay readable.

    python benchmarks/clean_presidio.py --json [--data DIR] [--pictures 34] [--seed 0] [--model en_core_web_lg]

Needs `pip install presidio-image-redactor` and the named spaCy model, best in an environment of their own. Presidio
removes what it takes for personal data, by its recognisers or because the DICOM header says it; here it is told every
word of every string beforehand, in the way its DICOM engine passes on header values, so that only what it does not see
stays. It blanks boxes and inpaints nothing; tissue and graphics are not compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_THREAD_LIMIT", "1")

import cv2
import numpy as np
import overlays
from attack import readable
from clean import KINDS, Pixels, Score, annotated
from PIL import Image

from usfmae.core.clean import clean
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import CleanImage, Quarantined


class Presidio:
    """Its image redactor with Tesseract, told the words of the picture at hand."""

    def __init__(self, model: str) -> None:
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider
        from presidio_image_redactor import ImageAnalyzerEngine, ImageRedactorEngine

        languages = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": model}]}
        analyzer = AnalyzerEngine(nlp_engine=NlpEngineProvider(nlp_configuration=languages).create_engine())
        self.engine = ImageRedactorEngine(image_analyzer_engine=ImageAnalyzerEngine(analyzer_engine=analyzer))

    def __call__(self, picture: overlays.Painted) -> CleanImage:
        from presidio_analyzer import PatternRecognizer

        words = sorted({word for string in picture.strings for word in (string.text, *string.text.split())})
        recognizer = PatternRecognizer(supported_entity="PERSON", deny_list=words)
        redacted = self.engine.redact(Image.fromarray(picture.pixels), fill=(0, 0, 0), ad_hoc_recognizers=[recognizer])
        pixels: Pixels = np.asarray(redacted, np.uint8)
        return CleanImage(pixels, (pixels != picture.pixels).any(2))


def safe(picture: overlays.Painted) -> CleanImage | Quarantined:
    return clean(picture.pixels, CleanSettings())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("USFMAE_TEST_DATA", "../shared/data")))
    parser.add_argument("--pictures", type=int, default=34)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="en_core_web_lg", help="spaCy model for Presidio's analyzer")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    report = measure(options)
    print(json.dumps(report, indent=2) if options.json else "\n".join(f"{k:10s} {v}" for k, v in report.items()))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both on each picture, in turn."""
    programs = {"presidio": Presidio(options.model), "safe": safe}
    scores = {name: Score() for name in programs}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for picture in islice(annotated(options.data, "scoring", options.seed), options.pictures):
        were_readable = [readable(picture.pixels, string) for string in picture.strings]
        for name, program in programs.items():
            began = time.perf_counter()
            result = program(picture)
            seconds[name].append(time.perf_counter() - began)
            _count(scores[name], picture, result, were_readable)
    return {
        name: {
            **{f"strings_{kind}": score.strings[kind] for kind in KINDS},
            **{f"readable_{kind}": score.readable[kind] for kind in KINDS},
            "quarantined": sum(score.quarantined["annotated"]),
            "seconds_a_picture": round(statistics.median(seconds[name]), 3),
        }
        for name, score in scores.items()
    }


def _count(
    score: Score, picture: overlays.Painted, result: CleanImage | Quarantined, were_readable: list[bool]
) -> None:
    """Book the strings; those of a picture that is kept back do not leak."""
    score.quarantined["annotated"].append(isinstance(result, Quarantined))
    for string, was_readable in zip(picture.strings, were_readable, strict=True):
        score.strings[string.kind] += was_readable
        if isinstance(result, CleanImage):
            score.readable[string.kind] += was_readable and readable(result.pixels, string)


if __name__ == "__main__":
    main()
