"""The evaluator on real images with a tiny encoder: random weights, pretrained here, raw pixels, an ImageNet backbone.

    python benchmarks/probe.py ROOT --out DIR [--seeds 3] [--steps 1000] [--minutes 5]

ROOT holds data sets as `usfmae datasets check` knows them. The encoder is pretrained on everything of strict42 there,
read as `usfmae prepare` reads but not cleaned, in two recipes; benchmark images never enter. Checkpoints and features
are kept below DIR, so a call that was cut, or ended after --minutes, goes on. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from usfmae.core.bench import encoders
from usfmae.core.bench.encoders.base import Pooling
from usfmae.core.bench.evaluate import described
from usfmae.core.bench.features import Features, aspect_of, features, squares
from usfmae.core.bench.metrics import Predictions, measures, resampled, score
from usfmae.core.bench.probe import HEADS, probe
from usfmae.core.bench.tasks import load as load_task
from usfmae.core.bench.tasks.base import BenchmarkTask
from usfmae.core.checkpoint import save
from usfmae.core.checkpoint_header import describe
from usfmae.core.config import ReadSettings
from usfmae.core.config.bench import BenchSettings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import square, write_shard
from usfmae.core.mae import train_log
from usfmae.core.mae.evaluation import evaluate
from usfmae.core.mae.model import fresh
from usfmae.core.mae.presets import TRIAL, configure
from usfmae.core.mae.train import TrainContext, TrainPlan, train
from usfmae.core.openus46.layout import check_all, scans
from usfmae.core.openus46.leak import same_pictures
from usfmae.core.openus46.registry import corpus as data_sets
from usfmae.core.read import read
from usfmae.core.types import CleanImage, content_id

FOLDERS = {"bus-bra": "bus_bra", "mmotu-2d": "mmotu_2d"}
TINY = configure("tiny", beneath=TRIAL)
SIDE = 112  # of packed images: a zoom of 2 still has pixels to show
RECIPES: dict[str, dict[str, Any]] = {
    "pretrained, mask 0.25": {"mask_ratio": 0.25, "norm_pix": False},  # the paper's
    "pretrained, mask 0.75, normalised patches": {},
}
SECRET = b"public data sets need no secret."


def corpus(root: Path, out: Path) -> Corpus:
    """Everything of strict42 below `root` as a corpus at `out`, made once."""
    if not (out / "shards").is_dir():
        for check in check_all(data_sets("strict42"), root):
            items = []
            for scan in scans(check, SECRET) if check.scans else ():
                for frame in read(scan, ReadSettings()):
                    image = CleanImage(frame.pixels, np.zeros(frame.pixels.shape[:2], bool), scan.trail)
                    packed = square(image, SIDE, scan.group, scan.dataset)
                    items.append(
                        type(packed)(
                            packed.pixels, content_id(scan.trail.id, str(frame.index)), packed.group, packed.dataset
                        )
                    )
            if items:
                write_shard(out, check.dataset.id, items)
    return Corpus([out])


def pretrained(
    images: Corpus, out: Path, recipe: str, seed: int, steps: int, end: float
) -> tuple[Path, dict[str, float]]:
    """A checkpoint pretrained with one seed, its held-out masked loss before and after, and the seconds.

    `end`: the `time.monotonic()` at which this program stops; what is done so far is kept.
    """
    name = f"{recipe.replace(' ', '-')}-{steps}-{seed}"
    path = out / f"{name}.safetensors"
    facts = path.with_suffix(".json")
    if facts.exists():
        return path, json.loads(facts.read_text())
    changed = {"seed": seed, "keep": 1, **RECIPES[recipe]}
    settings = TINY.train.model_copy(update=changed)
    train_on, held = images.split(0.1, 0)
    model = fresh(TINY.model, settings.mask_ratio, settings.norm_pix, seed)
    before = evaluate(model, images, held, settings)
    log, state = out / f"{name}.jsonl", out / f"{name}.state"
    over = lambda _: time.monotonic() > end  # noqa: E731
    if not train(model, images, settings, TrainPlan(train_on, steps), TrainContext(state, log, over)).finished:
        raise SystemExit(f"{name}: to be continued")
    seconds = sum(line["seconds"] for line in train_log.read(log))
    losses = {"before": before, "after": evaluate(model, images, held, settings), "seconds": round(seconds, 1)}
    save(path, model.state_dict(), describe(TINY.model, settings))
    facts.write_text(json.dumps(losses))
    return path, losses


def arms(checkpoints: dict[str, list[Path]], pooling: Pooling) -> dict[str, list[tuple[str, Pooling]]]:
    """What is compared: (model, pooling) for each seed, by label; the recipes first."""
    first = next(iter(checkpoints.values()))
    return {
        **{recipe: [(str(path), pooling) for path in paths] for recipe, paths in checkpoints.items()},
        "random weights": [(f"random:{first[0]}@{seed}", pooling) for seed in range(len(first))],
        "raw pixels": [("pixels", pooling)],
        "EfficientNet-Lite0, ImageNet": [("efficientnet-lite0", pooling)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=TINY.train.steps)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop pretraining after this time; call again")
    parser.add_argument("--recipe", choices=RECIPES, action="append", help="only this one")
    parser.add_argument("--pooling", choices=("mean", "cls"), default="mean")
    parser.add_argument("--task", choices=FOLDERS, action="append", help="only this benchmark")
    options = parser.parse_args()
    settings, images = BenchSettings(), corpus(options.root, options.out / "corpus")
    recipes, seeds, end = options.recipe or list(RECIPES), range(options.seeds), time.monotonic() + 60 * options.minutes
    made = {
        recipe: [pretrained(images, options.out, recipe, s, options.steps, end) for s in seeds] for recipe in recipes
    }
    compared = arms({recipe: [path for path, _ in runs] for recipe, runs in made.items()}, options.pooling)
    names, counts = np.unique(images.datasets, return_counts=True)
    result: dict[str, Any] = {
        "corpus": dict(zip(names.tolist(), counts.tolist(), strict=True)),
        "steps": options.steps,
        "losses": {recipe: [facts for _, facts in runs] for recipe, runs in made.items()},
        "tasks": {},
    }
    for name in options.task or FOLDERS:
        result["tasks"][name] = task_report(name, options.root / FOLDERS[name], options.out, images, compared, settings)
    print(json.dumps(result, indent=1))


def task_report(
    name: str,
    folder: Path,
    out: Path,
    images: Corpus,
    compared: dict[str, list[tuple[str, Pooling]]],
    settings: BenchSettings,
) -> dict[str, Any]:
    """Leaks, scores of every arm, effective rank of its features, and paired differences to each recipe."""
    task = load_task(name, folder)
    ids = [e.id for e in task.examples]
    leaks = same_pictures(name, ids, squares(task, 112), images, np.arange(len(images)), settings.leak_bits)
    report: dict[str, Any] = {"task": described(task), "leaks": [leak.as_dict() for leak in leaks], "scores": {}}
    said: dict[str, list[Predictions]] = {}
    for label, models in compared.items():
        feature_sets = [kept_features(spec, pool, task, out, settings) for spec, pool in models]
        runs = [probe(task, values, settings, curve=False) for values in feature_sets]
        said[label] = [run.predictions["logistic"] for run in runs]
        report["scores"][label] = {head: score([run.predictions[head] for run in runs]) for head in HEADS}
        report["scores"][label]["effective_rank"] = float(np.mean([effective_rank(values) for values in feature_sets]))
    report["tests"] = {
        recipe: {label: versus(said[recipe], other) for label, other in said.items() if label != recipe}
        for recipe in RECIPES
        if recipe in said
    }
    return report


def kept_features(spec: str, pool: Pooling, task: BenchmarkTask, out: Path, settings: BenchSettings) -> Features:
    """Features of one model, its images made square as the model's own were."""
    encoder = encoders.load(spec, pool)
    return features(encoder, task, 224, out / "features", aspect=aspect_of(encoder, settings))[0]


def effective_rank(values: Features) -> float:
    """exp of the entropy of the shares of variance (Roy and Vetterli 2007)."""
    spread = np.linalg.svd(values - values.mean(axis=0), compute_uv=False) ** 2
    shares = spread[spread > 0] / spread.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def versus(first: list[Predictions], second: list[Predictions], resamples: int = 1000) -> dict[str, dict[str, float]]:
    """Difference of the means over seeds, patients resampled once for both."""
    weights = resampled(first[0].groups, resamples, 42)
    compared = {}
    for measure in ("balanced_accuracy", "auroc"):
        drawn = [np.mean([measures(r, weights)[measure] for r in runs], axis=0) for runs in (first, second)]
        points = [np.mean([float(measures(r)[measure]) for r in runs]) for runs in (first, second)]
        low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
        compared[measure] = {"difference": float(points[0] - points[1]), "low": float(low), "high": float(high)}
    return compared


if __name__ == "__main__":
    main()
