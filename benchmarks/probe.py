"""The evaluator on real images with a tiny encoder: random weights, pretrained here, raw pixels, an ImageNet backbone.

    python benchmarks/probe.py ROOT --out DIR [--seeds 5] [--steps 200]

ROOT holds data sets as `usfmae datasets check` knows them. The encoder is pretrained on everything of strict42 there,
read as `usfmae prepare` reads but not cleaned; benchmark images never enter. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from usfmae.core.bench import encoders
from usfmae.core.bench.base import load as load_task
from usfmae.core.bench.evaluate import described
from usfmae.core.bench.features import features, squares
from usfmae.core.bench.metrics import Predictions, compare, measures, resampled, score
from usfmae.core.bench.probe import probe
from usfmae.core.checkpoint import describe, save
from usfmae.core.config import ModelSettings, ReadSettings
from usfmae.core.config.bench import BenchSettings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.openus46 import corpus as data_sets
from usfmae.core.corpus.openus46_layout import check_all, scans
from usfmae.core.corpus.openus46_leak import same_pictures
from usfmae.core.corpus.shard import square, write_shard
from usfmae.core.flow import CleanImage, content_id
from usfmae.core.model import MaskedAutoencoder
from usfmae.core.presets import preset
from usfmae.core.read import read
from usfmae.core.train import evaluate, train

FOLDERS = {"bus-bra": "bus_bra", "mmotu-2d": "mmotu_2d"}
MODEL = ModelSettings(image_size=112, width=128, depth=3, heads=4, decoder_width=64, decoder_depth=1, decoder_heads=4)
SECRET = b"public data sets need no secret."


def corpus(root: Path, out: Path) -> Corpus:
    """Everything of strict42 below `root` as a corpus at `out`, made once."""
    if not (out / "shards").is_dir():
        for found in check_all(data_sets("strict42"), root):
            items = []
            for scan in scans(found, SECRET) if found.scans else ():
                for frame in read(scan, ReadSettings()):
                    image = CleanImage(frame.pixels, np.zeros(frame.pixels.shape[:2], bool), scan.trail)
                    packed = square(image, MODEL.image_size, scan.group, scan.dataset)
                    items.append(
                        type(packed)(
                            packed.pixels, content_id(scan.trail.id, str(frame.index)), packed.group, packed.dataset
                        )
                    )
            if items:
                write_shard(out, found.dataset.id, items)
    return Corpus([out])


def pretrained(images: Corpus, out: Path, seed: int, steps: int) -> tuple[Path, dict[str, float]]:
    """A checkpoint pretrained with one seed, and its held-out masked loss before and after."""
    path = out / f"seed-{seed}.safetensors"
    settings = preset("tiny")[1].model_copy(update={"seed": seed, "batch_size": 32, "micro_batch": 32})
    train_on, held = images.split(0.1, 0)
    torch.manual_seed(seed)
    model = MaskedAutoencoder(MODEL, settings.mask_ratio)
    began, before = time.perf_counter(), evaluate(model, images, held, settings)
    if path.exists():
        model.load_state_dict(encoders.load_checkpoint(path).tensors)
    else:
        train(model, images, settings, positions=train_on, steps=steps)
        save(path, model.state_dict(), describe(MODEL, settings))
    after = evaluate(model, images, held, settings)
    return path, {"before": before, "after": after, "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--task", choices=FOLDERS, action="append", help="only this benchmark")
    parser.add_argument("--curve", action="store_true", help="also label efficiency")
    asked = parser.parse_args()
    settings, images = BenchSettings(), corpus(asked.root, asked.out / "corpus")
    seeds = range(asked.seeds)
    checkpoints, losses = zip(*(pretrained(images, asked.out, s, asked.steps) for s in seeds), strict=True)
    models = {
        "random": [f"random:{checkpoints[0]}@{s}" for s in seeds],
        "pretrained here": [str(path) for path in checkpoints],
        "pixels": ["pixels"],
        "efficientnet-lite0, ImageNet": ["efficientnet-lite0"],
    }
    names, counts = np.unique(images.datasets, return_counts=True)
    result = {"corpus": dict(zip(names.tolist(), counts.tolist(), strict=True)), "losses": losses, "tasks": {}}
    for name in asked.task or FOLDERS:
        task = load_task(name, asked.root / FOLDERS[name])
        ids = [e.id for e in task.examples]
        leaks = same_pictures(name, ids, squares(task, 112), images, np.arange(len(images)), settings.leak_bits)
        report = {
            "task": described(task),
            "leaks": [leak.as_dict() for leak in leaks],
            "scores": {},
            "curve": {},
            "tests": {},
        }
        said: dict[str, list[Predictions]] = {}
        for label, specs in models.items():
            runs = []
            for number, spec in enumerate(specs):
                encoder = encoders.load(spec)
                found, _ = features(encoder, task, 224, asked.out / "features")
                runs.append(probe(task, found, settings, curve=asked.curve and number == 0))
            said[label] = [run.predictions["logistic"] for run in runs]
            report["scores"][label] = {
                head: score([run.predictions[head] for run in runs]) for head in ("logistic", "knn")
            }
            report["curve"][label] = runs[0].curve
        for other in said:
            if other != "pretrained here":
                report["tests"][other] = versus(said["pretrained here"], said[other])
        result["tasks"][name] = report
    print(json.dumps(result, indent=1))


def versus(first: list[Predictions], second: list[Predictions], resamples: int = 1000) -> dict[str, dict[str, float]]:
    """Difference of the means over seeds, patients resampled once for both."""
    weights = resampled(first[0].groups, resamples, 42)
    found = {}
    for measure in ("balanced_accuracy", "auroc"):
        drawn = [np.mean([measures(r, weights)[measure] for r in runs], axis=0) for runs in (first, second)]
        points = [np.mean([float(measures(r)[measure]) for r in runs]) for runs in (first, second)]
        low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
        found[measure] = {"difference": float(points[0] - points[1]), "low": float(low), "high": float(high)}
    found["first seed"] = {"p_mcnemar": float(compare(first[0], second[0], "balanced_accuracy")["p_mcnemar"])}
    return found


if __name__ == "__main__":
    main()
