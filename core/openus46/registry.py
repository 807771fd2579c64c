"""OpenUS-46: the registry of the 46 public ultrasound data sets in Table 1 of the USF-MAE paper.

The data stand in `openus46.yaml`. Images are never shipped: each site or researcher downloads what its licence allows.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal

import yaml
from pydantic import Field

from usfmae.core.config.base import Options, validated
from usfmae.core.errors import UsageError

TABLE_1_TOTAL = 374_192
BENCHMARKS = ("bus_bra", "mmotu_2d", "gist514")
# The paper's "10,578 images reserved for evaluation" are the three benchmarks and FEFT, to the image.
RESERVED = (*BENCHMARKS, "feft")
# CEUS frames from the hospital and study of MMOTU-2D.
SAME_PATIENTS_AS_A_BENCHMARK = ("mmotu_3d",)

CorpusName = Literal["paper46", "readme43", "strict42"]
LicenceFilter = Literal["any", "permissive"]


class Layout(Options):
    name: str = "as published"
    include: tuple[str, ...]
    """Globs of the files that are scans."""
    exclude: tuple[str, ...] = ()
    """Globs of masks, labels and other modalities; wins over include."""
    needs: tuple[str, ...] = ()
    """Globs that must each match a file before this layout is considered."""
    files: int | None = None
    """Scans in the complete archive, where known."""


class Dataset(Options):
    id: str
    name: str
    anatomy: str
    images: int = Field(gt=0)
    """Images in Table 1 of the paper."""
    role: Literal["pretrain", "benchmark"]
    link: str
    host: str
    registration: str
    licence: str
    licence_class: Literal["permissive", "non-commercial", "agreement", "unknown"]
    licence_source: str | None = None
    subject: str
    native_size: str
    kind: Literal["raster", "video", "volume", "by-suffix"]
    sampling: Literal["all", "3 fps", "one"]
    files: int | None = None
    patients: int | None = None
    folders: tuple[str, ...]
    group: str | None = None
    layout: str
    layout_source: str
    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    variants: tuple[Layout, ...] = ()
    overlaps: tuple[str, ...] = ()
    notes: str | None = None

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The published layout first."""
        return (Layout(include=self.include, exclude=self.exclude, files=self.files), *self.variants)

    @property
    def verified(self) -> bool:
        """False where no public loader was found to check the layout against."""
        return self.layout_source != "unverified"


class _Registry(Options):
    version: Literal[1]
    datasets: tuple[Dataset, ...]


@cache
def registry() -> dict[str, Dataset]:
    """All 46 data sets by id, in the order of Table 1."""
    text = files("usfmae.core.openus46").joinpath("openus46.yaml").read_text(encoding="utf-8")
    datasets = validated(_Registry, yaml.safe_load(text), "openus46.yaml").datasets
    return {dataset.id: dataset for dataset in datasets}


def dataset(id_: str) -> Dataset:
    """One data set; UsageError names the known ids."""
    try:
        return registry()[id_]
    except KeyError:
        raise UsageError(f"data set {id_}", "not in OpenUS-46", "see 'usfmae datasets list'") from None


def corpus(name: CorpusName, licence: LicenceFilter = "any") -> list[Dataset]:
    """The data sets of a pretraining corpus.

    paper46: all of Table 1. readme43: without the three benchmarks, as the released file name says.
    strict42: also without FEFT, and MMOTU-3D is held back, so that no benchmark patient is trained on knowingly.
    """
    left_out: dict[str, tuple[str, ...]] = {
        "paper46": (),
        "readme43": BENCHMARKS,
        "strict42": (*RESERVED, *SAME_PATIENTS_AS_A_BENCHMARK),
    }
    return [
        d
        for d in registry().values()
        if d.id not in left_out[name] and (licence == "any" or d.licence_class == "permissive")
    ]
