"""Real scans of five public data sets as small corpora, one a site, cached outside the repository.

Breast is the organ the seed knows: it has the most patients. Ovary, two kinds of lung and fetal heads come later.
Pictures are squared as they are, without cleaning: burnt-in text is the same for every arm.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.corpus.shard import PackedImage, square, write_shard
from usfmae.core.federated.forgetting_panel import Organ
from usfmae.core.types import CleanImage, Trail

SIZE = 112
FRAMES = 4  # of a clip, evenly spread
OLD = "breast"
NEW = ("ovary", "lung-clips", "lung-frames", "fetal-head")
ORGAN_OF = {
    "bus_bra": OLD,
    "stu_hospital": OLD,
    "mmotu_2d": "ovary",
    "covid_blues": "lung-clips",
    "pocus_frames": "lung-frames",
    "hc18": "fetal-head",
}
JUDGED = ("ovary", "lung-frames")  # new organs whose classes are an endpoint; the clips have too few patients
UNLABELLED = ("stu_hospital", "hc18")
HELD_OUT = 0.25
FITTED = 400  # images of an organ that a probe is fitted on


def prepare(data: Path, cache: Path) -> Path:
    """Write the corpora once; returns their folder."""
    root = cache / f"corpora-{SIZE}-{FRAMES}-by-video"
    with (data / "index.csv").open(newline="") as stream:
        rows = [r for r in csv.DictReader(stream) if r["dataset"] in ORGAN_OF and r["kind"] != "mask"]
    for dataset in ORGAN_OF:
        if not list((root / dataset).glob("shards/*.json")):
            chosen = sorted((r for r in rows if r["dataset"] == dataset), key=lambda r: r["path"])
            write_shard(root / dataset, dataset, [item for row in chosen for item in _packed(data, row)])
    return root


def _packed(data: Path, row: dict[str, str]) -> Iterator[PackedImage]:
    label = "" if row["dataset"] in UNLABELLED else row["label"]
    group = _group(row)
    for number, frame in enumerate(_frames(data / row["path"])):
        name = f"{label}|{row['path']}#{number}"  # public scans: the name may say what they are
        image = CleanImage(frame, np.zeros(frame.shape[:2], bool), Trail(name))
        yield square(image, SIZE, f"{row['dataset']}/{group}" if group else "", ORGAN_OF[row["dataset"]])


def _group(row: dict[str, str]) -> str:
    """The patient as far as a data set says who it is; "" where it says nothing.

    POCUS names a source and a video: only `pat1` and the like are patients, the other sources are collections.
    """
    first = row["group"].split(" | ")[0]
    if row["dataset"] == "stu_hospital":
        return ""
    return row["group"] if row["dataset"] == "pocus_frames" and not first.startswith("pat") else first


def _frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    still = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.suffix in (".png", ".jpg") else None
    if still is not None:
        yield still[..., ::-1]
        return
    clip = cv2.VideoCapture(str(path))
    frames = []
    while (read := clip.read())[0]:
        frames.append(read[1][..., ::-1])
    clip.release()
    for index in np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).astype(int):
        yield frames[index]


@dataclass(frozen=True)
class Scans:
    """All corpora as one, and who has which images in one repetition of the experiment."""

    corpus: Corpus
    old: Positions  # what the seed was trained on; may be replayed
    sites: dict[str, Positions]  # training images by site
    panel: dict[str, Organ]


def scans(root: Path, seed: int, split: str) -> Scans:
    """`split`: "organ" (a site an organ) or "iid" (the images dealt at random). Held-out groups depend on `seed`."""
    corpus = Corpus(sorted(root.iterdir()), verify=False)
    train, held = corpus.split(HELD_OUT, seed)
    organ = np.array(corpus.datasets)
    labels = _labels(corpus)
    by_organ = {name: train[organ[train] == name] for name in (OLD, *NEW)}
    panel = {
        name: Organ(name, corpus, held[organ[held] == name], spread(by_organ[name], FITTED), labels.get(name))
        for name in (OLD, *NEW)
    }
    sites = {name: by_organ[name] for name in NEW}
    if split == "iid":
        pool = np.random.default_rng(seed).permutation(np.concatenate(list(sites.values())))
        sites = {f"site-{i}": np.sort(part) for i, part in enumerate(np.array_split(pool, len(NEW)))}
    return Scans(corpus, by_organ[OLD], sites, panel)


def spread(positions: Positions, count: int) -> Positions:
    """At most `count` of them, evenly spread."""
    return positions[np.linspace(0, len(positions) - 1, min(count, len(positions))).astype(np.int64)]


def _labels(corpus: Corpus) -> dict[str, NDArray[np.int64]]:
    """Classes by organ, -1 where an image has none; organs without classes are absent."""
    labels = {}
    names = np.array([id_.split("|")[0] for id_ in corpus.ids])
    organ = np.array(corpus.datasets)
    for name in (OLD, *NEW):
        classes = sorted(set(names[organ == name]) - {""})
        if classes:
            number = {label: k for k, label in enumerate(classes)}
            labels[name] = np.array([number.get(n, -1) if o == name else -1 for n, o in zip(names, organ, strict=True)])
    return labels
