"""The experiment on forgetting stays alive: its quick form, on simulated scans laid out like the real ones."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
SETS = {"bus_bra": "ab", "stu_hospital": "", "mmotu_2d": "ab", "covid_blues": "ab", "pocus_frames": "ab", "hc18": ""}
MEASURES = ("old_loss", "new_loss", "old_auroc", "new_auroc", "bytes", "seconds")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 stills of each data set, two classes where it has any, with an index."""
    root = tmp_path_factory.mktemp("scans")
    rows = []
    for number, (name, classes) in enumerate(SETS.items()):
        (root / name).mkdir()
        for k in range(24):
            random = np.random.default_rng([number, k])
            waves = np.add.outer(np.sin(np.arange(64) / (3 + number)), np.cos(np.arange(64) / (4 + k % 2)))
            pixels = 90 + 40 * waves + random.normal(0, 12, (64, 64))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{k}.png")
            label = classes[k % 2] if classes else ""
            rows.append([f"{name}/{k}.png", name, "png", label, f"case_{k}"])
    with (root / "index.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", "dataset", "kind", "label", "group"], *rows])
    return root


def experiment(scans: Path, cache: Path) -> dict[str, Any]:
    words = ["--quick", "--json", "--data", scans, "--cache", cache, "--workers", "1", "--out", cache / "out"]
    command = [sys.executable, ROOT / "benchmarks" / "continual.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_three_arms_of_one_seed_are_measured_and_kept(scans: Path, tmp_path: Path) -> None:
    found = experiment(scans, tmp_path)
    arms = found["arms"]
    assert set(arms) == {"seed only", "centralised", "federated", "federated, frozen seed"}
    for name, arm in arms.items():
        assert arm["seeds"] == [0]
        for measure in MEASURES:
            assert math.isfinite(arm[measure]["mean"]) and arm[measure]["interval"] is None, f"{name} {measure}"
        assert (arm["bytes"]["mean"] > 0) == (name in ("federated", "federated, frozen seed"))
    for name in ("centralised", "federated"):
        assert arms[name]["new_loss"]["mean"] < arms["seed only"]["new_loss"]["mean"]
    assert "<svg" in (tmp_path / "out" / "continual.svg").read_text()
    assert "| federated | 1 |" in (tmp_path / "out" / "continual-table.md").read_text()
    again = experiment(scans, tmp_path)  # finished runs are read, not run
    assert again["arms"]["federated"]["seconds"] == arms["federated"]["seconds"]
