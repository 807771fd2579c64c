"""BUS-BRA: benign or malignant breast lesions, 1,875 images of 1,064 patients (Gomez-Flores et al. 2024).

The official `5-fold-cv.csv` gives the test fold of each image and, per round k, `valid_k` (0: validation). Its folds
keep patients whole, but its validation columns part many: a patient's two images may stand on both sides. Here a
patient goes where its first image goes. Table 2 of the paper shows fold 1 alone.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from usfmae.core.bench.tasks.base import (
    BenchmarkTask,
    Example,
    Split,
    image_named,
    images_by_stem,
    partial_note,
    required,
    table,
)
from usfmae.core.errors import SourceError
from usfmae.core.openus46.archive import entries

CLASSES = ("benign", "malignant")
FOLDS = range(1, 6)
# Images by (fold, class) in the official file.
OFFICIAL = {1: (254, 122), 2: (260, 125), 3: (246, 120), 4: (246, 119), 5: (262, 121)}
TOTAL = 1875


def load(root: Path, seed: int = 42) -> BenchmarkTask:
    """The task from a folder or zip with `Images`, `bus_data.csv` and `5-fold-cv.csv`. Raises SourceError."""
    listed = entries(root)
    data = required(listed, "bus_data.csv", "BUS-BRA")
    folds = required(listed, "5-fold-cv.csv", "BUS-BRA")
    images = images_by_stem(listed, "Images/bus_*.png")
    patients = {row["ID"]: row["Case"] for row in table(data, ("ID", "Case", "Pathology"))}
    rows = table(folds, ("ID", "Pathology", "kFold", *(f"valid_{k}" for k in FOLDS)))
    examples = tuple(
        Example(
            row["ID"],
            image_named(images, row["ID"], folds.name),
            _label(row["Pathology"], folds.name),
            _patient(patients, row["ID"], data.name),
        )
        for row in rows
    )
    wrong = [row["ID"] for row in rows if row["kFold"] not in {str(k) for k in FOLDS}]
    if wrong:
        raise SourceError(f"{folds.name}", f"gives image {wrong[0]} no fold from 1 to 5", "fetch it again")
    unlisted = sorted(set(images) - {row["ID"] for row in rows})
    if unlisted:
        raise SourceError(
            f"{folds.name}", f"does not list image {unlisted[0]} ({len(unlisted)} such)", "fetch it again"
        )
    _check_counts(rows)
    task = BenchmarkTask(
        "bus-bra", CLASSES, examples, (), positive=1, headline=("fold-1",), complete=len(examples) == TOTAL
    )
    splits = tuple(_split(task, rows, k) for k in FOLDS)
    return BenchmarkTask(**{**task.__dict__, "splits": splits, "notes": partial_note("BUS-BRA", len(examples), TOTAL)})


def _label(pathology: str, file: str) -> int:
    if pathology not in CLASSES:
        raise SourceError(f"{file}", f"has pathology '{pathology}'; known are {', '.join(CLASSES)}", "fetch it again")
    return CLASSES.index(pathology)


def _patient(patients: dict[str, str], id_: str, file: str) -> str:
    if id_ not in patients:
        raise SourceError(f"{file}", f"has no row for image {id_}", "fetch the whole archive")
    return patients[id_]


def _check_counts(rows: list[dict[str, str]]) -> None:
    """A partial copy may hold fewer images of a fold and class than the official file, never more."""
    counts = Counter((int(row["kFold"]), row["Pathology"]) for row in rows)
    complete = len(rows) == TOTAL
    for fold, official in OFFICIAL.items():
        for name, expected in zip(CLASSES, official, strict=True):
            count = counts[fold, name]
            if count > expected or (complete and count != expected):
                raise SourceError(
                    f"BUS-BRA fold {fold}", f"has {count} {name} images, the official file {expected}", "fetch it again"
                )


def _split(task: BenchmarkTask, rows: list[dict[str, str]], k: int) -> Split:
    fold = np.array([int(row["kFold"]) for row in rows])
    marked = np.array([row[f"valid_{k}"] == "0" for row in rows])
    outside = fold != k
    order = sorted(range(len(rows)), key=lambda i: task.examples[i].id, reverse=True)
    first = {task.examples[i].group: i for i in order}  # the last one written is the first in the alphabet
    held = [group for group, i in first.items() if marked[i]]
    validation = outside & np.isin(task.groups, held)
    return Split(f"fold-{k}", *(np.flatnonzero(part) for part in (outside & ~validation, validation, fold == k)))
