"""Small benchmarks in their true layouts, made here; tiny checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIDE = 32


def paint(path: Path, seed: int, level: int = 0) -> None:
    """A noisy picture whose brightness carries `level`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 60, (SIDE, SIDE)) + level
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def bus_bra(tmp_path: Path) -> Path:
    """30 patients with two images each, five folds; validation columns part patients, as the official file's do."""
    root = tmp_path / "BUSBRA"
    data, folds = ["ID,Case,Histology,Pathology"], ["ID,Pathology,kFold,valid_1,valid_2,valid_3,valid_4,valid_5"]
    for case in range(1, 31):
        kind = "malignant" if case % 3 == 0 else "benign"
        fold = (case - 1) % 5 + 1
        for side in "lr":
            id_ = f"bus_{case:04d}-{side}"
            paint(root / "Images" / f"{id_}.png", case * 2 + (side == "r"), 120 if kind == "malignant" else 20)
            data.append(f"{id_},{case},x,{kind}")
            # Both classes are validated in every round; patients 6 and 7 by one image only.
            valid = [
                "NaN"
                if k == fold
                else "0"
                if case in (1, 3, 9, 11, 13, 14) or (case in (6, 7) and side == "r")
                else "1"
                for k in range(1, 6)
            ]
            folds.append(",".join([id_, kind, str(fold), *valid]))
    (root / "bus_data.csv").write_text("\n".join(data) + "\n")
    (root / "5-fold-cv.csv").write_text("\n".join(folds) + "\n")
    return root


@pytest.fixture
def folder_task(tmp_path: Path) -> Path:
    """class/patient/image, 12 patients a class."""
    root = tmp_path / "task"
    for k, name in enumerate(("normal", "other")):
        for patient in range(12):
            for n in range(2):
                paint(root / name / f"{name}-{patient}" / f"{n}.png", patient * 10 + n + 1000 * k, 100 * k)
    return root


@pytest.fixture
def gist514(tmp_path: Path) -> Callable[[int], Path]:
    """The whole of GIST514-DB's annotations for a number of GIST images; every image is the same empty file."""

    def make(gist: int = 263) -> Path:
        root = tmp_path / "usd514_jpeg_roi"
        (root / "annotations").mkdir(parents=True)
        (root / "images").mkdir()
        category = [2] * gist + [1] * (514 - gist)
        order = np.random.default_rng(0).permutation(514)
        bounds = np.cumsum([0, 106, 103, 103, 103, 99])
        for n in range(514):
            (root / "images" / f"{n}.jpg").touch()
        for k in range(5):
            test = set(order[bounds[k] : bounds[k + 1]].tolist())
            for part, members in (("val", test), ("train", set(range(514)) - test)):
                coco = {
                    "images": [{"id": n, "file_name": f"{n}.jpg"} for n in sorted(members)],
                    "annotations": [{"image_id": n, "category_id": category[n]} for n in sorted(members)],
                }
                (root / "annotations" / f"{part}_anno_crop_split_{k}.json").write_text(json.dumps(coco))
        return root

    return make


@pytest.fixture
def mmotu(tmp_path: Path) -> Path:
    """The whole of MMOTU-2D's official lists; every image is an empty file."""
    from usfmae.core.bench.tasks.mmotu import TEST, TRAIN

    root = tmp_path / "OTU_2d"
    (root / "images").mkdir(parents=True)
    number = 0
    for name, counts in (("train", TRAIN), ("val", TEST)):
        labels = np.random.default_rng(1).permutation(np.repeat(np.arange(8), counts))
        lines = []
        for label in labels:
            number += 1
            (root / "images" / f"{number}.JPG").touch()
            lines.append(f"{number}.JPG  {label}")
        (root / f"{name}_cls.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights, 32 x 32 pixels, width 16."""
    import torch

    from usfmae.core.checkpoint import save
    from usfmae.core.checkpoint_header import describe
    from usfmae.core.config import ModelSettings, TrainSettings
    from usfmae.core.mae.model import MaskedAutoencoder

    settings = ModelSettings(
        image_size=32, patch_size=8, width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(path, MaskedAutoencoder(settings).state_dict(), describe(settings, TrainSettings(preset="tiny")))
    return path
