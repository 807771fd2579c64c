"""A hospital's own task: a tree `class/.../image`, or a table `labels.csv` with file, label and group.

In a tree, the folder right below the class is the patient; an image that lies directly in its class folder stands for
itself. In a table, `group` names the patient and `split` (train, validation, test) is honoured where it is given.
Label masks beside the images are left out by their content, as `prepare` leaves them out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
    is_label_mask,
    table,
    validation_of,
)
from usfmae.core.errors import SourceError
from usfmae.core.openus46.archive import Entry, entries
from usfmae.core.openus46.layout import RASTER

FOLDS = 5
PARTS = ("train", "validation", "test")
USUAL = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test"}


def load(root: Path, seed: int = 42) -> BenchmarkTask:
    """The task from a folder or zip. Raises SourceError."""
    listed = entries(root)
    labels = find(listed, f"{root.stem if root.is_file() else root.name}/labels.csv")
    return _from_table(listed, labels, seed) if labels else _from_tree(listed, root, seed)


def _from_tree(listed: Sequence[Entry], root: Path, seed: int) -> BenchmarkTask:
    images = [e for e in listed if e.name.lower().endswith(RASTER) and e.name.count("/") >= 2]
    parts = {e: e.name.split("/")[1:] for e in images}
    if root.is_file() and len({names[0] for names in parts.values()}) == 1:
        # A zip as desktops make it: the folder itself is packed, not its content.
        parts = {e: names[1:] for e, names in parts.items() if len(names) > 2}
    with ThreadPoolExecutor() as pool:
        masks = dict(zip(parts, pool.map(is_label_mask, parts), strict=True))
    parts = {e: names for e, names in parts.items() if not masks[e]}
    classes = tuple(sorted({names[0] for names in parts.values()}))
    if len(classes) < 2:
        raise SourceError(
            f"folder {root}", f"holds {len(classes)} class folder(s) with images", "make one folder a class"
        )
    # A patient may have images of several classes, so the class is no part of the group.
    examples = tuple(
        Example(e.name, e, classes.index(class_), rest[0] if len(rest) > 1 else e.name)
        for e, (class_, *rest) in parts.items()
    )
    grouped_by_patient = all(len(names) > 2 for names in parts.values())
    notes = (
        []
        if grouped_by_patient
        else ["images without a patient folder stand for themselves: give labels.csv with a group column"]
    )
    if left := sum(masks.values()):
        notes.append(f"{left:,} label mask(s) beside the images are left out")
    task = BenchmarkTask(
        "folder", classes, examples, (), _positive(classes), groups_known=grouped_by_patient, notes=tuple(notes)
    )
    return replace(task, splits=grouped_folds(task, FOLDS, seed))


def _from_table(listed: Sequence[Entry], labels: Entry, seed: int) -> BenchmarkTask:
    rows = table(labels, ("file", "label", "group"))
    top = labels.name.rpartition("/")[0]
    by_name = {e.name.removeprefix(f"{top}/"): e for e in listed}
    classes = tuple(sorted({row["label"] for row in rows}))
    twice = [name for name, count in Counter(name.lower() for name in classes).items() if count > 1]
    if twice:
        raise SourceError(f"{labels.name}", f"writes label '{twice[0]}' in several ways", "write each label one way")
    if len(classes) < 2:
        raise SourceError(f"{labels.name}", "names one class only", "label at least two classes")
    examples = tuple(
        Example(r["file"], image_named(by_name, r["file"], labels.name), classes.index(r["label"]), r["group"])
        for r in rows
    )
    nameless = [example.id for example in examples if not example.group]
    if nameless:
        raise SourceError(f"{labels.name}", f"has no group for {nameless[0]}", "name the patient of every image")
    task = BenchmarkTask("folder", classes, examples, (), _positive(classes))
    if "split" in rows[0]:
        return replace(
            task,
            splits=(
                _given(
                    task, [USUAL.get(row["split"].lower(), row["split"].lower()) for row in rows], labels.name, seed
                ),
            ),
        )
    return replace(task, splits=grouped_folds(task, FOLDS, seed))


def _given(task: BenchmarkTask, parts: Sequence[str], file: str, seed: int) -> Split:
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise SourceError(f"{file}", f"has split '{unknown[0]}'; known are {', '.join(PARTS)}", "mend the column")
    train, validation, test = (np.flatnonzero(np.array(parts) == part) for part in PARTS)
    if not len(validation):
        train, validation = validation_of(task, train, 0.1, seed)
    return Split("given", train, validation, test)


def _positive(classes: Sequence[str]) -> int | None:
    """The second of two classes in alphabetical order, as benign < malignant and normal < other would have it."""
    return 1 if len(classes) == 2 else None
