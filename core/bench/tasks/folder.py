"""A hospital's own task: a tree `class/.../image`, or a table `labels.csv` with file, label and group.

In a tree, the folder right below the class is the patient; an image that lies directly in its class folder stands for
itself. In a table, `group` names the patient and `split` (train, validation, test) is honoured where it is given.
"""

from __future__ import annotations

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
    table,
    validation_of,
)
from usfmae.core.errors import SourceError
from usfmae.core.openus46.archive import Entry, entries
from usfmae.core.openus46.layout import RASTER

FOLDS = 5
PARTS = ("train", "validation", "test")


def load(root: Path, seed: int = 42) -> BenchmarkTask:
    """The task from a folder or zip. Raises SourceError."""
    listed = entries(root)
    labels = find(listed, f"{root.stem if root.is_file() else root.name}/labels.csv")
    return _from_table(listed, labels, seed) if labels else _from_tree(listed, root, seed)


def _from_tree(listed: Sequence[Entry], root: Path, seed: int) -> BenchmarkTask:
    images = [e for e in listed if e.name.lower().endswith(RASTER) and e.name.count("/") >= 2]
    classes = tuple(sorted({e.name.split("/")[1] for e in images}))
    if len(classes) < 2:
        raise SourceError(
            f"folder {root}", f"holds {len(classes)} class folder(s) with images", "make one folder a class"
        )
    examples = []
    for e in images:
        _, class_, *rest = e.name.split("/")
        # A patient may have images of several classes, so the class is no part of the group.
        examples.append(Example(e.name, e, classes.index(class_), rest[0] if len(rest) > 1 else e.name))
    known = all(e.name.count("/") >= 3 for e in images)
    notes = (
        () if known else ("images without a patient folder stand for themselves: give labels.csv with a group column",)
    )
    task = BenchmarkTask("folder", classes, tuple(examples), (), _positive(classes), groups_known=known, notes=notes)
    return replace(task, splits=grouped_folds(task, FOLDS, seed))


def _from_table(listed: Sequence[Entry], labels: Entry, seed: int) -> BenchmarkTask:
    rows = table(labels, ("file", "label", "group"))
    top = labels.name.rpartition("/")[0]
    by_name = {e.name.removeprefix(f"{top}/"): e for e in listed}
    classes = tuple(sorted({row["label"] for row in rows}))
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
        return replace(task, splits=(_given(task, [row["split"] for row in rows], labels.name, seed),))
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
