"""MMOTU-2D: eight classes of ovarian ultrasound, 1,469 images, official lists of 1,000 and 469 (Zhao et al. 2022).

No patient is named. Neighbouring numbers are often one patient, so blocks of twelve numbers stand in for patients in
the validation part; the official test list cannot be checked against patients at all.

Besides the published layout this reads resized copies with a `labels.csv` (file, mmotu_id, class_id); they have no
official lists, so five folds by block are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from usfmae.core.bench.tasks.base import (
    BenchmarkTask,
    Example,
    Split,
    find,
    grouped_folds,
    image_named,
    images_by_stem,
    partial_note,
    required,
    table,
    validation_of,
)
from usfmae.core.errors import SourceError
from usfmae.core.openus46.archive import Entry, entries

CLASSES = (
    "chocolate cyst",
    "serous cystadenoma",
    "teratoma",
    "theca cell tumour",
    "simple cyst",
    "normal ovary",
    "mucinous cystadenoma",
    "high-grade serous cystadenocarcinoma",
)
TRAIN = (226, 153, 228, 57, 47, 180, 71, 38)
TEST = (110, 66, 108, 31, 19, 87, 33, 15)
TOTAL = sum(TRAIN) + sum(TEST)
BLOCK = 12
NO_PATIENTS = "MMOTU-2D names no patients: blocks of 12 image numbers stand in for them"


def load(root: Path, seed: int = 42) -> BenchmarkTask:
    """The task from a folder or zip. Raises SourceError."""
    listed = entries(root)
    copies = find(listed, "labels.csv")
    if copies and not find(listed, "OTU_2d/train_cls.txt"):
        return _resized_copies(listed, copies, seed)
    images = images_by_stem(listed, "OTU_2d/images/*.jpg")
    lists = [required(listed, f"OTU_2d/{name}_cls.txt", "MMOTU-2D") for name in ("train", "val")]
    parts = [_listed(images, file) for file in lists]
    for part, expected, file in zip(parts, (TRAIN, TEST), lists, strict=True):
        _check_counts(part, expected, file.name)
    examples = (*parts[0], *parts[1])
    complete = len(examples) == TOTAL
    task = BenchmarkTask("mmotu-2d", CLASSES, examples, (), None, ("official",), complete, groups_known=False)
    inside, test = np.arange(len(parts[0])), np.arange(len(parts[0]), len(examples))
    # Blocks hold for the validation part only: the official lists may part a block, and nobody knows better.
    blocks = replace(
        task, examples=tuple(replace(e, group=f"test-{e.group}") if i in test else e for i, e in enumerate(examples))
    )
    split = Split("official", *validation_of(blocks, inside, 0.1, seed), test)
    return replace(blocks, splits=(split,), notes=(NO_PATIENTS, *partial_note("MMOTU-2D", len(examples), TOTAL)))


def _listed(images: dict[str, Entry], file: Entry) -> list[Example]:
    examples = []
    for line in file.read().decode().splitlines():
        if not line.strip():
            continue
        name, _, label = line.rpartition(" ") if " " in line.strip() else line.rpartition("\t")
        stem = Path(name.strip()).stem
        if not stem.isdigit() or label.strip() not in "01234567":
            raise SourceError(f"{file.name}", f"line '{line.strip()}' is not 'N.JPG  class 0-7'", "fetch it again")
        examples.append(Example(stem, image_named(images, stem, file.name), int(label), f"block-{int(stem) // BLOCK}"))
    return examples


def _check_counts(examples: Sequence[Example], expected: tuple[int, ...], file: str) -> None:
    counts = Counter(example.label for example in examples)
    for k, name in enumerate(CLASSES):
        if counts[k] != expected[k]:
            raise SourceError(
                f"{file}", f"lists {counts[k]} images of {name}, the official one {expected[k]}", "fetch it again"
            )


def _resized_copies(listed: Sequence[Entry], labels: Entry, seed: int) -> BenchmarkTask:
    by_name = {"/".join(e.name.split("/")[-2:]): e for e in listed}
    examples = []
    for row in table(labels, ("file", "mmotu_id", "class_id")):
        if row["class_id"] not in tuple("01234567") or not row["mmotu_id"].isdigit():
            raise SourceError(f"{labels.name}", f"row for {row['file']} has no class 0-7 or number", "mend the file")
        entry = image_named(by_name, row["file"], labels.name)
        examples.append(Example(row["mmotu_id"], entry, int(row["class_id"]), f"block-{int(row['mmotu_id']) // BLOCK}"))
    counts = Counter(example.label for example in examples)
    for k, name in enumerate(CLASSES):
        if counts[k] > TRAIN[k] + TEST[k]:
            raise SourceError(
                f"{labels.name}", f"lists {counts[k]} images of {name}; MMOTU-2D has fewer", "mend the file"
            )
    notes = (
        NO_PATIENTS,
        "resized copies without the official lists: five folds by block",
        *partial_note("MMOTU-2D", len(examples), TOTAL),
    )
    task = BenchmarkTask(
        "mmotu-2d", CLASSES, tuple(examples), (), None, (), complete=False, groups_known=False, notes=notes
    )
    return replace(task, splits=grouped_folds(task, 5, seed))
