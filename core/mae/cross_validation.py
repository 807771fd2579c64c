"""Choosing hyper-parameters as the paper does: every combination of a grid on k folds, then a refit on everything."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from usfmae.core.config import Settings, validated
from usfmae.core.config.load import put
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.errors import UsageError
from usfmae.core.files import write_atomic
from usfmae.core.mae.device import ranks
from usfmae.core.mae.evaluation import evaluate
from usfmae.core.mae.pretrain import InitFile, OnStep, steps_of
from usfmae.core.mae.train import TrainContext, TrainPlan, train
from usfmae.core.mae.weights.init_weights import InitWeights, architecture, build, read

RESULT = "selection.json"


@dataclass(frozen=True)
class CrossValidation:
    """Every combination of a grid's values, tried on every fold. Every fold starts from `init`.

    Folds never part a group unless `train.grouped` is off, as in the authors' notebook.
    """

    corpora: Sequence[Path]
    settings: Settings
    folds: int
    grid: Sequence[str]  # "lr=1e-3,3e-4"
    init: InitFile = field(default_factory=InitFile)

    def select(self, out: Path, device: str = "cpu", on_step: OnStep | None = None) -> Settings:
        """Settings for the refit: the values with the lowest mean masked loss over the folds' validation images.

        The refit holds nothing out: the folds have measured what held-out images would. Writes `selection.json` after
        every fold, and a second call goes on after the last. Raises UsageError for a grid that is none.
        """
        corpus, start = Corpus(self.corpora), read(self.init.path) if self.init.path else None
        settings = self.settings.model_copy(update={"model": architecture(self.settings.model, start)})
        parts = corpus.folds(self.folds, settings.train.seed, settings.train.grouped)
        results = _read(out / RESULT, corpus.fingerprint, settings)
        for values in combinations(self.grid):
            for number, fold in enumerate(parts):
                name = _key(values, number)
                if name not in results["losses"]:
                    trial = _Trial(corpus, with_values(settings, values), start, self.init.heads_stated)
                    results["losses"][name] = trial.loss(fold, device, on_step)
                    _write(out / RESULT, results)
        means = {
            json.dumps(values, sort_keys=True): float(
                np.mean([results["losses"][_key(values, n)] for n in range(self.folds)])
            )
            for values in combinations(self.grid)
        }
        chosen = json.loads(min(means, key=means.__getitem__))
        _write(out / RESULT, {**results, "means": means, "chosen": chosen})
        return with_values(settings, {**chosen, "train.held_out": 0.0})


@dataclass(frozen=True)
class _Trial:
    corpus: Corpus
    settings: Settings
    start: InitWeights | None
    heads_stated: bool

    def loss(self, fold: tuple[Positions, Positions], device: str, on_step: OnStep | None) -> float:
        """Masked loss on the fold's validation images after training on the others."""
        positions, validation = fold
        tried = self.settings
        loss_of = partial(evaluate, corpus=self.corpus, positions=validation[:16], settings=tried.train)
        model = build(self.start, tried.model, tried.train, loss_of, self.heads_stated).to(device)
        steps = steps_of(tried.train, len(positions))
        note = (lambda record: on_step(record, steps)) if on_step else None
        if not train(model, self.corpus, tried.train, TrainPlan(positions, steps), TrainContext(on_step=note)).finished:
            raise KeyboardInterrupt
        return evaluate(model, self.corpus, validation, tried.train)


def _key(values: dict[str, Any], fold: int) -> str:
    return json.dumps([values, fold], sort_keys=True)


def combinations(grid: Sequence[str]) -> list[dict[str, Any]]:
    """["lr=1e-3,3e-4", "weight_decay=0.01"] -> one mapping of keys to values for each combination."""
    axes = []
    for axis in grid:
        key, equals, values = axis.partition("=")
        if not equals or not values:
            raise UsageError(f"--grid {axis}", "not of the form key=v1,v2", "write for example lr=3e-4,1e-3")
        dotted = key if key.startswith(("train.", "model.")) else f"train.{key}"
        axes.append([(dotted, _value(text)) for text in values.split(",")])
    if not axes:
        raise UsageError("--cross-validate", "needs values to try", "add --grid lr=3e-4,1e-3 weight_decay=0.01,0.05")
    return [dict(chosen) for chosen in itertools.product(*axes)]


def _value(text: str) -> Any:
    try:
        return json.loads(text)  # numbers and booleans; YAML takes 1e-3 for a string
    except ValueError:
        return text


def with_values(settings: Settings, values: dict[str, Any]) -> Settings:
    """The settings with some keys replaced. Raises ConfigError for an unknown key or a value out of range."""
    changed = settings.model_dump()
    for key, value in values.items():
        put(changed, key, value)
    return validated(Settings, changed, "--grid")


def _write(path: Path, values: dict[str, Any]) -> None:
    if ranks()[0] == 0:
        write_atomic(path, json.dumps(values, indent=2).encode())


def _read(path: Path, fingerprint: str, settings: Settings) -> dict[str, Any]:
    """Losses of an earlier, interrupted call on the same corpus and settings; else none."""
    begun = {"corpus": fingerprint, "settings": settings.model_dump(mode="json"), "losses": {}}
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text())
        if all(stored.get(key) == begun[key] for key in ("corpus", "settings")):
            return stored
    return begun
