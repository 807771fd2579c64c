"""How long `usfmae probe` takes on all 1,875 images of BUS-BRA once their features are kept.

    python benchmarks/probe_speed.py --out DIR [--repeats 3] [--flat]

The images are noise in the published layout (counts of the official folds, 1,064 patients); the encoder has ViT-B's
width and one block, for what is timed is all that follows the features: five folds, both heads, label efficiency,
1,000 resamples. With --flat an image is one brightness and a little noise: nearly one-dimensional features, as of an
encoder that has learned little, are the hardest for the solver. Each call is a process of its own, start-up included.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from usfmae.core.bench.tasks.bus_bra import CLASSES, FOLDS, OFFICIAL
from usfmae.core.checkpoint import save
from usfmae.core.checkpoint_header import describe
from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.mae.model import fresh

PATIENTS, SIDE = 1064, 224


def write_task(root: Path, flat: bool) -> int:
    """BUS-BRA's published files with noise for images; returns the number of images."""
    (root / "Images").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    data, table = ["ID,Case,Histology,Pathology"], ["ID,Pathology,kFold," + ",".join(f"valid_{k}" for k in FOLDS)]
    number = case = 0
    for fold, counts in OFFICIAL.items():
        for kind, count in zip(CLASSES, counts, strict=True):
            for place in range(count):
                # The official share of patients with a second image.
                case += place == 0 or number * PATIENTS // 1875 != (number - 1) * PATIENTS // 1875
                name = f"bus_{number:04d}-l"
                pixels = generator.integers(0, 100 + 40 * (kind == "malignant"), (SIDE, SIDE))
                pixels = generator.integers(20, 230) + pixels // 10 if flat else pixels
                Image.fromarray(pixels.astype(np.uint8)).save(root / "Images" / f"{name}.png", compress_level=1)
                data.append(f"{name},{case},x,{kind}")
                held = case % 10 == 0
                valid = ["NaN" if k == fold else "0" if held else "1" for k in FOLDS]
                table.append(",".join([name, kind, str(fold), *valid]))
                number += 1
    (root / "bus_data.csv").write_text("\n".join(data) + "\n")
    (root / "5-fold-cv.csv").write_text("\n".join(table) + "\n")
    return number


def write_encoder(path: Path, seed: int) -> Path:
    model = ModelSettings(depth=1, decoder_width=64, decoder_depth=1)
    save(path, fresh(model, seed=seed).state_dict(), describe(model, TrainSettings()))
    return path


def timed(root: Path, encoder: Path, out: Path) -> dict[str, Any]:
    """Seconds of one call, by the clock and of the processor, and what it says of itself."""
    code = "from usfmae.core.cli import main; main()"
    command = [sys.executable, "-c", code, "probe", "--task", "bus-bra", "--data", str(root), "--model", str(encoder)]
    began, before = time.perf_counter(), os.times()
    done = subprocess.run([*command, "--cache", str(out / "features"), "--json"], capture_output=True, check=True)
    seconds, after = time.perf_counter() - began, os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    (report,) = json.loads(done.stdout)["models"]
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(processor, 2),
        "features_cached": report["features_cached"],
        "feature_seconds": report["feature_seconds"],
        "probe_seconds": report["probe_seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--flat", action="store_true")
    options = parser.parse_args()
    images = write_task(options.out / "BUSBRA", options.flat)
    first, other = (write_encoder(options.out / f"{seed}.safetensors", seed) for seed in (0, 1))
    calls = {"new weights": timed(options.out / "BUSBRA", first, options.out)}
    again = [timed(options.out / "BUSBRA", first, options.out) for _ in range(options.repeats)]
    calls["other weights"] = timed(options.out / "BUSBRA", other, options.out)
    result = {
        "images": images,
        "features": 768,
        "flat": options.flat,
        "folds": len(OFFICIAL),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        **calls,
        "features kept": again,
        "median_seconds_features_kept": statistics.median(call["seconds"] for call in again),
        "median_processor_seconds_features_kept": statistics.median(call["processor_seconds"] for call in again),
        "load_average": os.getloadavg()[0],  # above the cores, the clock tells of other programs
        "target_seconds": 20,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
