"""Fine-tuning a whole encoder on a benchmark: a grid, early stopping on the validation part, several seeds.

Recipe `paper`: the paper states the grid (learning rate, weight decay, batch size) and the augmentations, not the rest
(`fit.py`). Recipe `good` is ours. The validation part alone chooses; the test part is read once for each seed. A run
that is done is never done again. The weights of the best run stay, as a classifier to use.
"""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from usfmae.core.bench import classifier
from usfmae.core.bench.encoders.base import Encoder
from usfmae.core.bench.features import images_id
from usfmae.core.bench.fit import FitChoice, FitData, FitRun, Training
from usfmae.core.bench.metrics import Predictions, pooled
from usfmae.core.bench.probe import predictions
from usfmae.core.bench.tasks.base import BenchmarkTask, Split
from usfmae.core.config.bench import FinetuneSettings
from usfmae.core.files import replacing
from usfmae.core.types import Pixels, content_id


def grid(settings: FinetuneSettings) -> list[FitChoice]:
    return [
        FitChoice(*point) for point in itertools.product(settings.lrs, settings.weight_decays, settings.batch_sizes)
    ]


class Runs:
    """The trainings of one model on one task, each done once and kept below a folder; the best one's weights too."""

    def __init__(
        self, task: BenchmarkTask, build: Callable[[], Encoder], settings: FinetuneSettings, out: Path
    ) -> None:
        self.task, self.build, self.settings, self.out = task, build, settings, out
        constant = settings.model_dump_json(exclude={"seeds", "lrs", "weight_decays", "batch_sizes"})
        self.key = content_id(build().id, images_id(task), constant)
        self.done: list[FitRun] = []

    def run(self, pixels: Pixels, split: Split, choice: FitChoice, seed: int) -> tuple[FitRun, bool]:
        """One training, and whether it was read back."""
        parts = (split.train.tobytes(), split.validation.tobytes(), split.test.tobytes())
        size = str(pixels.shape[1])
        name = content_id(self.key, size, split.name, json.dumps(asdict(choice)), str(seed), *parts)[:32]
        path = self.out / "runs" / f"{name}.npz"
        earlier = _read(path)
        if earlier is not None:
            self.done.append(earlier)
            return earlier, True
        encoder = self.build()
        trained = Training(FitData(self.task, split, pixels), encoder, self.settings, choice, seed).run()
        classifier.keep_best(self.out / classifier.WEIGHTS, self.task, encoder, trained)
        trained = replace(trained, weights=None)
        _write(path, trained)
        self.done.append(trained)
        return trained, False


def finetune(
    task: BenchmarkTask,
    build: Callable[[], Encoder],
    pixels: Pixels,
    settings: FinetuneSettings,
    out: Path,
    on_run: Callable[[FitRun, bool], None] | None = None,
) -> tuple[list[Predictions], list[FitRun]]:
    """Predictions over all splits, one entry for each seed, and every run. `build` gives a fresh encoder.

    pixels: (N, S, S, C) uint8 squares of the task's images. Runs are kept under `out/runs`, the weights of the one with
    the best validation score in `out`; `on_run` is told each run and whether it was read back.
    """
    runs = Runs(task, build, settings, out)

    def run(split: Split, choice: FitChoice, seed: int) -> FitRun:
        trained, is_cached = runs.run(pixels, split, choice, seed)
        if on_run:
            on_run(trained, is_cached)
        return trained

    by_seed: dict[int, list[Predictions]] = {seed: [] for seed in settings.seeds}
    for split in task.splits:
        tried = [run(split, choice, settings.seeds[0]) for choice in grid(settings)]
        best = max(tried, key=lambda r: (r.validation, -r.validation_loss))
        for seed in settings.seeds:
            result = best if seed == settings.seeds[0] else run(split, best.choice, seed)
            by_seed[seed].append(predictions(task, split, result.probabilities))
    return [pooled(parts) for parts in by_seed.values()], runs.done


def _write(path: Path, run: FitRun) -> None:
    facts = {k: v for k, v in asdict(run).items() if k not in ("probabilities", "weights")}
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, probabilities=run.probabilities, facts=np.array(json.dumps(facts)))


def _read(path: Path) -> FitRun | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts = json.loads(str(stored["facts"]))
            return FitRun(**{**facts, "choice": FitChoice(**facts["choice"])}, probabilities=stored["probabilities"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
