"""Segmentation: pairs are found, a visible thing is learned, Dice and IoU are what they are called."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from usfmae.core.bench import encoders
from usfmae.core.bench.segmentation.segment import overlap, scores, segment, squares_of
from usfmae.core.bench.segmentation.tasks import load
from usfmae.core.cli import group
from usfmae.core.config.bench import SegmentSettings
from usfmae.core.errors import SourceError


def disc(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Speckle with a brighter disc, and the disc."""
    random = np.random.default_rng(seed)
    y, x = random.integers(12, 28, 2)
    mask = np.hypot(*(np.indices((40, 40)) - np.array([y, x])[:, None, None])) < 9
    return (random.integers(0, 80, (40, 40)) + 120 * mask).astype(np.uint8), mask


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """images/PATIENT/k.png and masks/PATIENT/k.png, 15 patients."""
    for patient in range(15):
        for n in range(2):
            pixels, mask = disc(10 * patient + n)
            for kind, picture in (("images", pixels), ("masks", mask.astype(np.uint8) * 255)):
                path = tmp_path / "own" / kind / f"p{patient}" / f"{n}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    return tmp_path / "own"


def test_overlap_is_dice_and_iou_and_one_where_nothing_is_marked() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert overlap(a, b) == (1.0, 1.0)
    a[:2], b[1:3] = True, True
    assert overlap(a, b) == (0.5, pytest.approx(1 / 3))
    assert overlap(a, np.zeros((4, 4), bool)) == (0.0, 0.0)


def test_pairs_are_found_in_both_layouts_and_patients_stay_whole(pairs: Path, tmp_path: Path) -> None:
    task = load("folder", pairs)
    assert len(task.masks) == 30 and len(set(task.images.groups)) == 15 and task.images.groups_known
    assert all(
        i.name.replace("images", "masks") == m.name
        for i, m in zip((e.entry for e in task.images.examples), task.masks, strict=True)
    )
    flat = tmp_path / "flat"
    flat.mkdir()
    for k, path in enumerate(sorted((pairs / "images").rglob("*.png"))):
        shutil.copy(path, flat / f"{k}.png")
        shutil.copy(str(path).replace("images", "masks"), flat / f"{k}_mask.png")
    beside = load("folder", flat)
    assert len(beside.masks) == 30 and all("_mask" in m.name for m in beside.masks) and beside.images.notes


def test_a_mask_of_another_size_and_too_few_pairs_are_named(pairs: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(pairs / "masks" / "p3" / "0.png")
    with pytest.raises(SourceError, match=r"p3/0\.png - is \(8, 8\), its image"):
        squares_of(load("folder", pairs), 32, "keep")
    shutil.rmtree(pairs / "masks")
    with pytest.raises(SourceError, match="0 pairs"):
        load("folder", pairs)


def test_bus_bra_has_its_masks_in_the_official_folds(bus_bra: Path) -> None:
    (bus_bra / "Masks").mkdir()
    for image in (bus_bra / "Images").iterdir():
        shutil.copy(image, bus_bra / "Masks" / image.name.replace("bus_", "mask_"))
    task = load("bus-bra", bus_bra)
    assert [s.name for s in task.images.splits] == [f"fold-{k}" for k in range(1, 6)]
    assert all(e.id[4:] in m.name for e, m in zip(task.images.examples, task.masks, strict=True))
    next((bus_bra / "Masks").iterdir()).unlink()
    with pytest.raises(SourceError, match="no mask for image"):
        load("bus-bra", bus_bra)


@pytest.mark.parametrize("finetune", [False, True])
def test_a_bright_disc_is_learned(pairs: Path, checkpoint: Path, finetune: bool) -> None:
    task = load("folder", pairs)
    settings = SegmentSettings(finetune=finetune, epochs=12, lr=1e-2, encoder_lr=1e-3)
    found = segment(task, lambda: encoders.load(str(checkpoint)), settings, "squash")
    figures = scores(found, 200, 0)
    assert len(found) == 30 and len({o.id for o in found}) == 30
    assert (
        figures["dice"]["value"] > 0.7 and figures["dice"]["low"] < figures["dice"]["value"] < figures["dice"]["high"]
    )
    assert figures["iou"]["value"] < figures["dice"]["value"]


def test_the_command_reports_every_image(pairs: Path, checkpoint: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        group,
        [
            *("segment", "--task", "folder", "--data", str(pairs), "--model", str(checkpoint), "--split", "fold-1"),
            *("--out", str(tmp_path / "out"), "--set", "bench.segment.epochs=1", "--json"),
        ],
        catch_exceptions=False,
    )
    report = json.loads(done.stdout)
    rows = next((tmp_path / "out").glob("*.csv")).read_text().splitlines()
    assert len(rows) == 1 + report["models"][0]["images"] and set(report["models"][0]["scores"]) == {"dice", "iou"}
