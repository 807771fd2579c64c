"""Segmentation tasks: images with a mask each, in official splits where there are any. A task is a function and a row.

The mask is foreground or not: what is brighter than half of its brightest value. A lesion's class is no matter here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from usfmae.core.bench.segmentation import SEGMENTATIONS
from usfmae.core.bench.tasks import load as load_classes
from usfmae.core.bench.tasks.base import BenchmarkTask, Example, checked, grouped_folds, images_by_stem
from usfmae.core.errors import SourceError, UsageError, needs
from usfmae.core.openus46.archive import Entry, entries
from usfmae.core.openus46.layout import RASTER
from usfmae.core.types import Mask

FOLDS = 5
ENDINGS = ("_mask", "_seg", "_segmentation", "_gt", "_label")  # of a mask's name beside its image's
IMAGES, MASKS = ("images", "image", "imgs"), ("masks", "mask", "labels", "annotations", "segmentations", "gt")


@dataclass(frozen=True)
class SegmentationTask:
    """Image k of `images` has the mask `masks[k]`. Groups, splits and notes are those of a benchmark."""

    images: BenchmarkTask  # one class only; its examples carry ids and groups
    masks: tuple[Entry, ...]

    @property
    def name(self) -> str:
        return self.images.name


def load(name: str, root: Path, seed: int = 42) -> SegmentationTask:
    """A task by name from a folder or zip. Raises UsageError, SourceError or ResourceError."""
    needs("sklearn", "bench")
    if name not in SEGMENTATIONS:
        raise UsageError(f"task {name}", "is not known", f"choose one of {', '.join(SEGMENTATIONS)}")
    if not root.exists():
        raise SourceError(f"data of {name}: {root}", "does not exist", "give the folder or zip of the data set")
    loader: Callable[[Path, int], SegmentationTask] = globals()[SEGMENTATIONS[name]]
    return loader(root, seed)


def bus_bra(root: Path, seed: int) -> SegmentationTask:
    """BUS-BRA's `Masks/mask_N.png`, in the official folds."""
    masks = images_by_stem(entries(root), "Masks/mask_*.png")
    return _with_masks(load_classes("bus-bra", root, seed), lambda e: masks.get(e.id.replace("bus_", "mask_", 1)))


def mmotu(root: Path, seed: int) -> SegmentationTask:
    """MMOTU-2D's `annotations/N_binary.PNG` with the official lists; resized copies: `masks/` with the image's name."""
    listed = entries(root)
    official = images_by_stem(listed, "OTU_2d/annotations/*_binary.png")
    copies = images_by_stem(listed, "masks/*")
    task = load_classes("mmotu-2d", root, seed)
    return _with_masks(task, lambda e: official.get(f"{e.id}_binary") or copies.get(Path(e.entry.name).stem))


def folder(root: Path, seed: int) -> SegmentationTask:
    """A hospital's own pairs: `images/` and `masks/` with equal names, or `x.png` beside `x_mask.png`.

    The folder below `images`, or the one that holds a pair, names the patient; without one an image stands for itself.
    """
    pictures = [e for e in entries(root) if e.name.lower().endswith(RASTER)]
    pairs = _by_folder(pictures) or _by_ending(pictures)
    if len(pairs) < 2 * FOLDS:
        raise SourceError(
            f"{root}",
            f"holds {len(pairs)} pairs of image and mask, too few for {FOLDS} folds",
            "put images/ and masks/ with equal names below it, or x_mask.png beside x.png",
        )
    examples = tuple(Example(image.name, image, 0, group or image.name) for image, _, group in pairs)
    grouped_by_patient = all(group for _, _, group in pairs)
    notes = () if grouped_by_patient else ("images without a patient folder stand for themselves",)
    task = BenchmarkTask("folder", ("foreground",), examples, (), groups_known=grouped_by_patient, notes=notes)
    task = BenchmarkTask(**{**task.__dict__, "splits": grouped_folds(task, FOLDS, seed)})
    return SegmentationTask(checked(task), tuple(mask for _, mask, _ in pairs))


def _with_masks(task: BenchmarkTask, mask_of: Callable[[Example], Entry | None]) -> SegmentationTask:
    """A classification benchmark's images and splits with masks. SourceError where an image has none."""
    masks = [mask_of(example) for example in task.examples]
    absent = [e.id for e, mask in zip(task.examples, masks, strict=True) if mask is None]
    if absent:
        raise SourceError(f"{task.name}", f"has no mask for image {absent[0]} ({len(absent)} such)", "give the archive")
    return SegmentationTask(task, tuple(mask for mask in masks if mask is not None))


Pair = tuple[Entry, Entry, str]  # image, mask, group


def _by_folder(pictures: Sequence[Entry]) -> list[Pair]:
    """`.../images/[patient/]name` and `.../masks/[patient/]name`, whatever the suffixes."""
    sides: tuple[dict[str, Entry], dict[str, Entry]] = ({}, {})
    for entry in pictures:
        parts = entry.name.split("/")
        for side, names in zip(sides, (IMAGES, MASKS), strict=True):
            at = next((i for i, part in enumerate(parts[:-1]) if part.lower() in names), None)
            if at is not None:
                side["/".join([*parts[at + 1 : -1], _plain(parts[-1])])] = entry
    images, masks = sides
    return [(images[k], masks[k], k.rpartition("/")[0]) for k in sorted(images) if k in masks]


def _by_ending(pictures: Sequence[Entry]) -> list[Pair]:
    """`x.png` with `x_mask.png` in the same folder; the folder is the patient where it holds few pairs of many."""
    masks = {_key(e, _plain(Path(e.name).name)): e for e in pictures if Path(e.name).stem.lower().endswith(ENDINGS)}
    pairs = [(e, masks[k]) for e in pictures if (k := _key(e, Path(e.name).stem)) in masks and masks[k] is not e]
    folders = {e.name.rpartition("/")[0] for e, _ in pairs}
    return [(e, m, e.name.rpartition("/")[0] if len(folders) > 2 * FOLDS else "") for e, m in pairs]


def _key(entry: Entry, stem: str) -> str:
    return f"{entry.name.rpartition('/')[0]}/{stem}"


def _plain(name: str) -> str:
    """A file's stem without the ending that marks a mask."""
    stem = Path(name).stem
    return next((stem[: -len(e)] for e in ENDINGS if stem.lower().endswith(e)), stem)


def read_mask(entry: Entry, shape: tuple[int, int], name: str) -> Mask:
    """(H, W) bool. SourceError where the file is no picture of its image's size."""
    data = np.frombuffer(entry.read(), np.uint8)
    decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if decoded is None:
        raise SourceError(f"mask {entry.name}", "cannot be decoded", "fetch it again")
    gray = decoded if decoded.ndim == 2 else decoded[..., :3].max(axis=2)
    if gray.shape != shape:
        raise SourceError(f"mask {entry.name}", f"is {gray.shape}, its image {name} {shape}", "mend the pair")
    bright: Mask = gray > gray.max() / 2 if gray.max() else np.zeros(shape, bool)
    return bright
