"""UltraBench's classification tasks (package `ultrabench`, MIT), from the folders its command prepares.

`ultrabench butterfly RAW OUT` and its like write images with train.json, validation.json and test.json. Those splits are
kept as they are; each is one task here, named ultrabench-DATASET after its folder: aul_mass, butterfly, camus, fatty_liver, gbcu,
mmotu, pocus, stanford_thyroid. The folders of segmentation tasks are refused, also aul_liver, whose rows repeat aul_mass' labels.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from usfmae.core.bench.tasks.base import BenchmarkTask, Example, Split, required
from usfmae.core.errors import SourceError
from usfmae.core.openus46.archive import Entry, entries

SEGMENTATION = ("aul_liver", "open_kidney", "psfhs")
PARTS = ("train", "validation", "test")
PATIENT = ("patient", "source")  # pocus names the source video
NAMED = ("class", "pathology")  # fields that say in words what the label is


def load(root: Path, seed: int = 42) -> BenchmarkTask:
    """The task of a prepared folder or zip; its splits are the published ones, whatever the seed. Raises SourceError."""
    listed = entries(root)
    files = {part: required(listed, f"**{part}.json", f"UltraBench data {root}") for part in PARTS}
    top = files["train"].name.rpartition("/")[0]
    name = _name(root, top)
    if name in SEGMENTATION:
        raise SourceError(f"UltraBench data {root}", "is a segmentation task", "give a folder of a classification task")
    images = {entry.name.removeprefix(f"{top}/"): entry for entry in listed}
    rows = {part: _rows(file) for part, file in files.items()}
    every = [row for part in PARTS for row in rows[part]]
    grouped = all(any(name in row for name in PATIENT) for row in every)
    examples = tuple(_example(row, images, files[part]) for part in PARTS for row in rows[part])
    ends = np.cumsum([0, *(len(rows[part]) for part in PARTS)])
    parts = [np.arange(start, stop) for start, stop in itertools.pairwise(ends)]
    notes = () if grouped else ("UltraBench names no patients here: images of one patient may stand on both sides",)
    return BenchmarkTask(
        f"ultrabench-{name}",
        _classes(every),
        examples,
        (Split("official", *parts),),
        groups_known=grouped,
        notes=notes,
    )


def _rows(file: Entry) -> list[dict[str, Any]]:
    try:
        rows = json.loads(file.read())
        labelled = all(isinstance(row["label"], int) and isinstance(row["image"], str) for row in rows)
    except (ValueError, TypeError, KeyError) as error:
        lacks = isinstance(error, KeyError)
        why = f"has no {error} in its rows" if lacks else f"is no list of rows: {error}"
        raise SourceError(file.name, why, "give a folder of a classification task") from None
    if not rows or not labelled:
        raise SourceError(file.name, "has rows without a whole number as label", "prepare it with ultrabench again")
    return list(rows)


def _example(row: dict[str, Any], images: dict[str, Entry], file: Entry) -> Example:
    entry = images.get(row["image"])
    if entry is None:
        raise SourceError(file.name, f"names image {row['image']!r:.100}, which is absent", "give the whole folder")
    patient = next((f"{name} {row[name]}" for name in PATIENT if name in row), row["image"])
    return Example(row["image"], entry, row["label"], patient)


def _classes(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """A name for each label: in words where exactly one word goes with it."""
    words: dict[int, set[str]] = {}
    for row in rows:
        words.setdefault(row["label"], set()).update(str(row[name]) for name in NAMED if isinstance(row.get(name), str))
    count = max(words) + 1
    return tuple(next(iter(words[k])) if len(words.get(k, ())) == 1 else f"class {k}" for k in range(count))


def _name(root: Path, top: str) -> str:
    """`butterfly` of `butterfly_v1.0.1`."""
    folder = (top or root.name).rpartition("/")[2]
    return re.sub(r"_v[\d.]+$", "", Path(folder).stem if folder.endswith(".zip") else folder)
