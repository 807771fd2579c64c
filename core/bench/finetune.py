"""Fine-tuning a whole encoder on a benchmark: the paper's grid, early stopping on the validation part, several seeds.

The paper states the grid (learning rate, weight decay, batch size) and the augmentations, not the rest (`fit.py`).
The validation part alone chooses; the test part is read once for each seed. A run that is done is never done again.
"""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from usfmae.core.bench.encoders.base import Encoder
from usfmae.core.bench.features import images_id
from usfmae.core.bench.fit import FitChoice, FitRun, Training
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


def finetune(
    task: BenchmarkTask,
    build: Callable[[], Encoder],
    pixels: Pixels,
    settings: FinetuneSettings,
    out: Path,
    on_run: Callable[[FitRun, bool], None] | None = None,
) -> tuple[list[Predictions], list[FitRun]]:
    """Predictions over all splits, one entry for each seed, and every run. `build` gives a fresh encoder.

    pixels: (N, S, S, C) uint8 squares of the task's images. Runs are kept under `out/runs`; `on_run` is told each run
    and whether it was read back.
    """
    runs: list[FitRun] = []
    constant = settings.model_dump_json(exclude={"seeds", "lrs", "weight_decays", "batch_sizes"})
    key = content_id(build().id, images_id(task), str(pixels.shape[1]), constant)

    def run(split: Split, choice: FitChoice, seed: int) -> FitRun:
        parts = (split.train.tobytes(), split.validation.tobytes(), split.test.tobytes())
        name = content_id(key, split.name, json.dumps(asdict(choice)), str(seed), *parts)[:32]
        path = out / "runs" / f"{name}.npz"
        kept = _read(path)
        done = kept or Training(task, split, build(), pixels, settings, choice, seed).run()
        if kept is None:
            _write(path, done)
        runs.append(done)
        if on_run:
            on_run(done, kept is not None)
        return done

    by_seed: dict[int, list[Predictions]] = {seed: [] for seed in settings.seeds}
    for split in task.splits:
        tried = [run(split, choice, settings.seeds[0]) for choice in grid(settings)]
        best = max(tried, key=lambda r: (r.validation, -r.validation_loss))
        for seed in settings.seeds:
            found = best if seed == settings.seeds[0] else run(split, best.choice, seed)
            by_seed[seed].append(predictions(task, split, found.probabilities))
    return [pooled(parts) for parts in by_seed.values()], runs


def _write(path: Path, run: FitRun) -> None:
    facts = {k: v for k, v in asdict(run).items() if k != "probabilities"}
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, probabilities=run.probabilities, facts=np.array(json.dumps(facts)))


def _read(path: Path) -> FitRun | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts = json.loads(str(stored["facts"]))
            return FitRun(**{**facts, "choice": FitChoice(**facts["choice"])}, probabilities=stored["probabilities"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
