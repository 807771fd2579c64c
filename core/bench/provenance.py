"""May a model be scored on this benchmark, or was it trained on it? Only what can be shown is said; the rest is unknown.

Pictures are compared where the corpus is here. Else the registry knows which public data sets are in OpenUS-46, and models of
natural images have seen none of them as far as their authors publish. For every other model the list of its training data
is its authors' to show: `unknown`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from usfmae.core.bench.tasks.base import BenchmarkTask
from usfmae.core.openus46.registry import registry

# Names of UltraBench's folders -> ids of the registry, where the same images are in it.
SAME = {
    "aul_mass": "aul", "camus": "camus", "mmotu": "mmotu_2d", "pocus": "pocus", "stanford_thyroid": "thyroid_cineclip",
}  # fmt: skip
OURS = {"bus-bra": "bus_bra", "mmotu-2d": "mmotu_2d", "gist514": "gist514"}
NATURAL = ("timm:vgg", "timm:resnet", "timm:vit_base_patch16_224", "timm:vit_base_patch14_dinov2", "efficientnet-lite0")


class Standing(StrEnum):
    MAY = "may be scored here"
    TRAINED = "was trained on it"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Provenance:
    """A verdict and why."""

    standing: Standing
    why: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def dataset_of(task: BenchmarkTask) -> str:
    """The registry's id of a benchmark's images, "" where they are in no data set of it."""
    return OURS.get(task.name) or SAME.get(task.name.removeprefix("ultrabench-"), "")


def judged(spec: str, task: BenchmarkTask, corpora: Sequence[Path] = (), bits: int = 32) -> Provenance:
    """The verdict on the model `spec` and a task; `corpora`: what it was trained on, where that is here."""
    if spec == "pixels" or spec.startswith("random:"):
        return Provenance(Standing.MAY, "it was trained on nothing")
    if corpora:
        return _compared(task, corpora, bits)
    if spec.startswith(NATURAL):
        return Provenance(Standing.MAY, "trained on natural images, as its authors publish")
    dataset = dataset_of(task)
    if dataset:
        name = registry()[dataset].name
        return Provenance(
            Standing.UNKNOWN,
            f"{name} is one of the public sets that ultrasound encoders are trained on: give --corpus, or its authors' list",
        )
    return Provenance(Standing.UNKNOWN, "what it was trained on is not here: give --corpus, or its authors' list")


def _compared(task: BenchmarkTask, corpora: Sequence[Path], bits: int) -> Provenance:
    from usfmae.core.bench.features import squares
    from usfmae.core.corpus.batch import Corpus
    from usfmae.core.openus46.leak import same_pictures

    corpus = Corpus(list(corpora))
    images, ids = squares(task, 224), [example.id for example in task.examples]
    leaks = same_pictures(task.name, ids, images, corpus, np.arange(len(corpus)), bits)
    pairs = f"{len(ids):,} images against {len(corpus):,} of the corpus, {bits} of 256 bits"
    if not leaks:
        return Provenance(Standing.MAY, f"no image of it is in the corpus: {pairs}")
    leaked = len({leak.image for leak in leaks})
    return Provenance(Standing.TRAINED, f"{leaked:,} of its images are in the corpus ({pairs})")
