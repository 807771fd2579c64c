"""What the forgetting panel costs a server, beside what a round costs a site, on the same core.

    python benchmarks/panel.py [--organs 5] [--steps 200] [--repeats 3] [--json]

A round is `--steps` optimizer steps of 64 images with the tiny preset; the panel is read as after each merge: masked
loss, features, kNN, linear probe and CKA of every organ, at most 96 images measured and as many to fit. The two are
timed in turn, in CPU seconds; medians are compared. Simulated tissue; no data set is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from usfmae.core.checkpoint import load
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.mae.model import MaskedAutoencoder, load_tensors
from usfmae.core.mae.presets import PRESETS
from usfmae.core.mae.train import TrainPlan, train
from usfmae.server import bootstrap
from usfmae.server.layout import Layout
from usfmae.server.rounds.panel import PanelReader, opened
from usfmae.server.simulate import tissue

TINY = [f"{section}.{key}={value}" for section, values in PRESETS["tiny"].items() for key, value in values.items()]
CLASSES, GROUPS, STEPS = 2, 68, 4  # classes an organ; groups a class, of two images; optimizer steps timed at once


def main() -> None:
    given = _arguments()
    with TemporaryDirectory() as scratch:
        results = measure(Path(scratch), given.organs, given.steps, given.repeats)
    print(json.dumps(results, indent=2) if given.json else _text(results))


def measure(root: Path, organs: int, steps: int, repeats: int) -> dict[str, Any]:
    """CPU seconds of a panel and of an optimizer step, alternated, and the panel's share of a round."""
    bootstrap.create(
        root / "home", bootstrap.NewFederation("panel", port=0), [*TINY, "train.batch_size=64", "min_free_gib=0"]
    )
    home = Layout(root / "home")
    settings = home.settings()
    fill(root / "panel", organs, settings.model.image_size)
    panel = opened(root / "panel", settings.continual.panel_images)
    reader = PanelReader(home, panel, settings.continual)
    encoder = load(home.checkpoint(0)).tensors
    corpus = Corpus(sorted((root / "panel").glob("*/*")))
    model = MaskedAutoencoder(settings.model, settings.train.mask_ratio, settings.train.norm_pix)
    load_tensors(model, {**encoder, **load(home.decoder).tensors})

    def some_steps() -> object:
        return train(model, corpus, settings.train, TrainPlan(np.arange(len(corpus)), STEPS))

    some_steps()  # the first call of a process loads the optimizer
    panels, rounds = [], []
    for _ in range(repeats):
        panels.append(_seconds(lambda: reader.read(encoder)))
        rounds.append(_seconds(some_steps) / STEPS * steps)
    cost, round_ = statistics.median(panels), statistics.median(rounds)
    images = sum(len(o.measured) + len(o.fitted) for o in panel.organs.values())
    return {
        "organs": organs, "images": images, "steps": steps, "batch": 64, "repeats": repeats,
        "panel_cpu_seconds": cost, "round_cpu_seconds": round_, "share": cost / round_,
    }  # fmt: skip


def fill(folder: Path, organs: int, size: int) -> None:
    """Organs of two classes; a few simulated scans stand for all, shifted: the cost does not look at what they show."""
    scans = [image.pixels for site in range(CLASSES) for image in tissue(site, 4, size)]
    for organ in range(organs):
        for kind in range(CLASSES):
            items = [
                PackedImage(
                    np.roll(scans[4 * kind + k % 4], organ + k), f"{organ}-{kind}-{k}", f"{organ}-{kind}-{k // 2}"
                )
                for k in range(2 * GROUPS)
            ]
            write_shard(folder / f"organ-{organ}" / f"class-{kind}", f"{organ}-{kind}", items)


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _text(results: dict[str, Any]) -> str:
    took = f"{results['panel_cpu_seconds']:.2f} s, {results['share']:.1%} of a round of {results['round_cpu_seconds']:.0f} s"
    return f"panel of {results['organs']} organs, {results['images']} images: {took}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--organs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of a round")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser.parse_args()


if __name__ == "__main__":
    main()
