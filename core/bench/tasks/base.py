"""What a benchmark is: labelled images, groups that a split must not part, and splits.

A benchmark is one file with `load(root, seed) -> BenchmarkTask` and one row of the table in `tasks/__init__.py`.
`checked` is called on each task before anything is trained.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from usfmae.core.config.read import ReadSettings
from usfmae.core.errors import SourceError, UsageError
from usfmae.core.openus46.archive import Entry, pattern
from usfmae.core.read import read
from usfmae.core.read.facts import RefusedScan
from usfmae.core.types import Pixels, Scan

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """One labelled image."""

    id: str
    entry: Entry
    label: int
    group: str  # patient, or the block that stands for one


@dataclass(frozen=True)
class Split:
    """Positions of examples; the three parts are disjoint and share no group."""

    name: str
    train: Positions
    validation: Positions
    test: Positions


@dataclass(frozen=True)
class BenchmarkTask:
    name: str
    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    splits: tuple[Split, ...]
    positive: int | None = None  # class of the paper's binary view
    headline: tuple[str, ...] = ()  # splits that the paper's Table 2 shows; () means all
    complete: bool = True  # every image of the published data set is there
    groups_known: bool = True  # groups are patients; False where the data set names none
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.array([example.label for example in self.examples], np.int64)

    @property
    def groups(self) -> NDArray[np.str_]:
        return np.array([example.group for example in self.examples])


def checked(task: BenchmarkTask) -> BenchmarkTask:
    """The same task, or a SourceError that names what is wrong with it."""
    ids = Counter(example.id for example in task.examples)
    twice = [id_ for id_, count in ids.items() if count > 1]
    if twice:
        raise SourceError(f"{task.name}: image {twice[0]}", f"is listed {ids[twice[0]]} times", "mend the label file")
    if not task.splits:
        raise SourceError(f"{task.name}", "has no split", "give a label file with a split column, or more groups")
    for split in task.splits:
        _check_split(task, split)
    return task


def _check_split(task: BenchmarkTask, split: Split) -> None:
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    sides: dict[str, str] = {}
    for side, positions in parts.items():
        if not len(positions):
            raise SourceError(
                f"{task.name}, {split.name}", f"its {side} part is empty", "use fewer splits or more data"
            )
        for group in np.unique(task.groups[positions]):
            if sides.setdefault(group, side) != side:
                raise SourceError(
                    f"{task.name}, {split.name}",
                    f"parts patient {group} over {sides[group]} and {side}",
                    "keep each patient on one side",
                )
    absent = sorted(set(range(len(task.classes))) - set(task.labels[split.train]))
    if absent:
        names = ", ".join(task.classes[k] for k in absent)
        raise SourceError(f"{task.name}, {split.name}", f"no training image of class {names}", "add images or folds")


def validation_of(task: BenchmarkTask, train: Positions, share: float, seed: int) -> tuple[Positions, Positions]:
    """Part a training set into (train, validation) by group, classes in proportion; both keep every class if they can.

    Raises SourceError where there are too few groups.
    """
    folds = max(2, round(1 / share))
    labels, groups = task.labels[train], task.groups[train]
    if len(set(groups)) < folds:
        raise SourceError(
            f"{task.name}", f"{len(set(groups))} groups cannot make {folds} folds", f"add patients, {folds} at least"
        )
    classes = set(labels)
    candidates = [(train[fit], train[held]) for fit, held in grouped(labels, groups, folds, seed)]
    whole = [(fit, held) for fit, held in candidates if set(task.labels[fit]) == classes]
    fit, held = max(whole or candidates, key=lambda pair: len(set(task.labels[pair[1]])))
    return fit, held


def grouped_folds(task: BenchmarkTask, folds: int, seed: int) -> tuple[Split, ...]:
    """Cross-validation by group, classes in proportion, each with a tenth of its training groups for validation."""
    if len(set(task.groups)) < folds:
        raise SourceError(
            f"{task.name}",
            f"{len(set(task.groups))} groups cannot make {folds} folds",
            f"add patients, {folds} at least",
        )
    parts = enumerate(grouped(task.labels, task.groups, folds, seed), start=1)
    return tuple(Split(f"fold-{k}", *validation_of(task, train, 0.1, seed), test) for k, (train, test) in parts)


def grouped(
    labels: NDArray[np.int64], groups: NDArray[np.str_], folds: int, seed: int
) -> list[tuple[Positions, Positions]]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    alone = len(set(groups)) == len(groups)  # the same folds in a hundredth of the time
    splitter = (StratifiedKFold if alone else StratifiedGroupKFold)(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer images than folds: `validation_of` looks for the best fold, `checked` names what lacks.
        warnings.simplefilter("ignore", UserWarning)
        try:
            return list(splitter.split(labels, labels, groups))
        except ValueError as error:
            raise SourceError("split", str(error), "use fewer folds or add images") from None


def find(listed: Sequence[Entry], glob: str) -> Entry | None:
    """The first file that matches, the shallowest path first."""
    fits = pattern((glob,))
    matches = sorted((e for e in listed if fits.fullmatch(e.name)), key=lambda e: (e.name.count("/"), e.name))
    return matches[0] if matches else None


def required(listed: Sequence[Entry], glob: str, what: str) -> Entry:
    """`find`, or a SourceError that says what is missing."""
    entry = find(listed, glob)
    if entry is None:
        raise SourceError(f"{what}", f"no file {glob} was found", "give the whole archive of the data set")
    return entry


def table(entry: Entry, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a table that must have these columns, however a spreadsheet wrote it. Raises SourceError.

    Commas, semicolons or tabs; UTF-8, UTF-16 or a Western code page, with or without a byte order mark; `5.0` and
    `5,0` for 5; spaces about names and values; names of columns in any case.
    """
    text = _decoded(entry.read())
    first = text.partition("\n")[0]
    mark = max(",;\t", key=first.count)
    try:
        raw = list(csv.reader(io.StringIO(text), delimiter=mark, strict=True))
    except csv.Error as error:
        raise SourceError(f"{entry.name}", f"is no table: {error}", "save it as CSV again") from None
    head = [name.strip().lower() for name in raw[0]] if raw else []
    lacking = [name for name in columns if name.lower() not in head]
    if lacking:
        raise SourceError(
            f"{entry.name}",
            f"lacks the column(s) {', '.join(lacking)}; it has {', '.join(head) or 'none'}",
            f"name its columns {','.join(columns)}",
        )
    names = {name.lower(): name for name in columns}
    rows = [row for row in raw[1:] if any(cell.strip() for cell in row)]
    return [{names.get(n, n): _cell(v) for n, v in zip_longest(head, row[: len(head)], fillvalue="")} for row in rows]


def _decoded(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _cell(text: str) -> str:
    """A cell without spaces about it; a whole number without the decimals that a spreadsheet has added."""
    whole = re.fullmatch(r"(-?\d+)[.,]0+", text.strip())
    return whole[1] if whole else text.strip()


def images_by_stem(listed: Sequence[Entry], glob: str) -> dict[str, Entry]:
    """Images that match a glob by file name without suffix."""
    fits = pattern((glob,))
    return {Path(e.name).stem: e for e in listed if fits.fullmatch(e.name)}


def image_named(images: dict[str, Entry], stem: str, label_file: str) -> Entry:
    """The image a label file names, with slashes of either kind, or a SourceError that names both."""
    plain = stem.replace("\\", "/").removeprefix("./")
    if plain not in images:
        raise SourceError(f"{label_file}", f"names image {stem}, which is absent", "give the whole archive")
    return images[plain]


def partial_note(task: str, present: int, total: int) -> tuple[str, ...]:
    if present == total:
        return ()
    return (
        f"partial copy of {task}: {present:,} of {total:,} images, so no figure here compares with a published one",
    )


def only(task: BenchmarkTask, names: Sequence[str]) -> BenchmarkTask:
    """The task with some of its splits; all where none is named. Raises UsageError for an unknown name."""
    existing = [split.name for split in task.splits]
    unknown = [name for name in names if name not in existing]
    if unknown:
        raise UsageError(f"split {unknown[0]}", "is not known", f"choose from {', '.join(existing)}")
    return replace(task, splits=tuple(s for s in task.splits if s.name in names)) if names else task


SETTINGS = ReadSettings()


def picture(example: Example) -> Pixels:
    """(H, W, 3) uint8 RGB at native size, the first page. Raises SourceError that names the image.

    Depths beyond 8 bits are scaled to the picture's own range.
    """
    try:
        return _first(example.entry)
    except RefusedScan as error:
        raise SourceError(f"image {example.id}", f"is refused: {error.why}", "leave it out of the task") from None
    except (SourceError, OSError) as error:
        raise SourceError(f"image {example.id}", f"cannot be decoded: {error}", "fetch it again") from None


def picture_at(path: Path) -> Pixels:
    """(H, W, 3) uint8 RGB of a file. Raises SourceError."""
    return picture(Example(str(path), Entry(path.name, path), 0, ""))


def is_label_mask(entry: Entry) -> bool:
    """Whether the picture shows flat areas of few gray levels and nothing else; False where it cannot be read."""
    try:
        _first(entry)
    except RefusedScan as error:
        return error.reason == "label-mask"
    except (SourceError, OSError):
        return False
    return False


def _first(entry: Entry) -> Pixels:
    scan = Scan(entry.path, "raster", member=entry.member)
    return next(read(scan, SETTINGS)).pixels
