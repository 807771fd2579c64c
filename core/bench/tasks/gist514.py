"""GIST514-DB: gastrointestinal stromal tumour or leiomyoma in endoscopic ultrasound, 514 images, five splits (He 2022).

COCO files name the images of each split. Papers state 251 GIST and 263 leiomyomas, the authors' own results table
263 and 251; which of the two the files hold is told when they are loaded. No patient is named.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from usfmae.core.bench.tasks.base import (
    BenchmarkTask,
    Example,
    Split,
    image_named,
    images_by_stem,
    required,
    validation_of,
)
from usfmae.core.errors import SourceError
from usfmae.core.openus46.archive import Entry, entries

CLASSES = ("leiomyoma", "GIST")
COUNTS = {
    (251, 263): "263 GIST and 251 leiomyomas, as in the authors' table",
    (263, 251): "251 GIST and 263 leiomyomas, as in the papers",
}
TEST_SIZES = (106, 103, 103, 103, 99)
TOTAL = 514


def load(root: Path, seed: int = 42) -> BenchmarkTask:
    """The task from a folder or zip with `images` and `annotations`. Raises SourceError."""
    listed = entries(root)
    images = images_by_stem(listed, "images/*.jpg")
    tests = [_labels(required(listed, f"annotations/val_anno_crop_split_{k}.json", "GIST514-DB")) for k in range(5)]
    trains = [_labels(required(listed, f"annotations/train_anno_crop_split_{k}.json", "GIST514-DB")) for k in range(5)]
    labels = {stem: label for part in (*tests, *trains) for stem, label in part.items()}
    counts = Counter(labels.values())
    totals = (counts[0], counts[1])
    if totals not in COUNTS:
        raise SourceError(
            "GIST514-DB",
            f"has {totals[1]} GIST and {totals[0]} leiomyomas, not 263 / 251 or 251 / 263",
            "fetch it again",
        )
    stems = sorted(labels)
    examples = tuple(Example(s, image_named(images, s, "annotations"), labels[s], s) for s in stems)
    task = BenchmarkTask("gist514", CLASSES, examples, (), positive=1, groups_known=False)
    splits = tuple(_split(task, stems, trains[k], tests[k], k, seed) for k in range(5))
    notes = ("GIST514-DB names no patients: each image stands for itself", COUNTS[totals])
    return replace(task, splits=splits, notes=notes)


def _labels(file: Entry) -> dict[str, int]:
    """Image stem -> class of one COCO file."""
    try:
        coco: dict[str, Any] = json.loads(file.read())
        stems = {image["id"]: Path(image["file_name"]).stem for image in coco["images"]}
        labels = {stems[a["image_id"]]: int(a["category_id"]) - 1 for a in coco["annotations"]}
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{file.name}", f"is not a COCO file: {error!r}", "fetch it again") from None
    unknown = set(labels.values()) - {0, 1}
    if unknown or set(labels) != set(stems.values()):
        raise SourceError(f"{file.name}", "has images without one of the categories 1 and 2", "fetch it again")
    return labels


def _split(
    task: BenchmarkTask, stems: Sequence[str], train: dict[str, int], test: dict[str, int], k: int, seed: int
) -> Split:
    if set(train) & set(test):
        both = sorted(set(train) & set(test))[0]
        raise SourceError(f"GIST514-DB split {k}", f"image {both} is in train and test", "fetch it again")
    if len(test) != TEST_SIZES[k] or len(train) + len(test) != TOTAL:
        raise SourceError(
            f"GIST514-DB split {k}",
            f"tests {len(test)} of {len(train) + len(test)} images, not {TEST_SIZES[k]} of {TOTAL}",
            "fetch it again",
        )
    where = np.array([stem in test for stem in stems])
    return Split(f"split-{k}", *validation_of(task, np.flatnonzero(~where), 0.1, seed), np.flatnonzero(where))
