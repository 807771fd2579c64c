"""Choosing hyper-parameters as the paper does: every combination of a grid on k folds, then a refit on everything."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from usfmae.core.config import Settings, validated
from usfmae.core.config.load import put
from usfmae.core.corpus.batch import Corpus
from usfmae.core.errors import UsageError
from usfmae.core.files import write_atomic
from usfmae.core.mae.distributed import ranks
from usfmae.core.mae.pretrain import OnStep, steps_of
from usfmae.core.mae.train import evaluate, train
from usfmae.core.mae.weights.init_weights import architecture, build, read

RESULT = "selection.json"


def select(  # noqa: PLR0913
    corpora: Sequence[Path],
    out: Path,
    settings: Settings,
    folds: int,
    grid: Sequence[str],
    *,
    init: Path | None = None,
    heads_stated: bool = False,
    device: str = "cpu",
    on_step: OnStep | None = None,
) -> Settings:
    """Settings for the refit: the grid's values with the lowest mean masked loss over the folds' validation images.

    The refit holds nothing out: it is trained on everything.

    Writes `selection.json` after every fold, and a second call goes on after the last. Folds never part a group
    unless `train.grouped` is off, as in the authors' notebook. Every fold starts from `init`. Raises UsageError for a
    grid that is none.
    """
    corpus, start = Corpus(corpora), read(init) if init else None
    settings = settings.model_copy(update={"model": architecture(settings.model, start)})
    parts = corpus.folds(folds, settings.train.seed, settings.train.grouped)
    results = _read(out / RESULT, corpus.fingerprint, settings)
    for values in combinations(grid):
        tried = with_values(settings, values)
        for number, (positions, validation) in enumerate(parts):
            name = json.dumps([values, number], sort_keys=True)
            if name in results["losses"]:
                continue
            loss_of = partial(evaluate, corpus=corpus, positions=validation[:16], settings=tried.train)
            model = build(start, tried.model, tried.train, loss_of, heads_stated).to(device)
            steps = steps_of(tried.train, len(positions))
            note = (lambda record, n=steps: on_step(record, n)) if on_step else None
            result = train(model, corpus, tried.train, positions=positions, steps=steps, on_step=note)
            if not result.finished:
                raise KeyboardInterrupt
            results["losses"][name] = evaluate(model, corpus, validation, tried.train)
            _write(out / RESULT, results)
    means = {
        json.dumps(values, sort_keys=True): float(
            np.mean([results["losses"][json.dumps([values, n], sort_keys=True)] for n in range(folds)])
        )
        for values in combinations(grid)
    }
    chosen = json.loads(min(means, key=means.__getitem__))
    _write(out / RESULT, {**results, "means": means, "chosen": chosen})
    # The folds have measured what held-out images would: the refit may have them all.
    return with_values(settings, {**chosen, "train.held_out": 0.0})


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
