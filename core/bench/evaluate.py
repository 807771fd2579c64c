"""One evaluation of one model on one task: what is saved, what is printed, and what may be compared."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from usfmae.core.bench.encoders.base import Encoder
from usfmae.core.bench.features import Progress, aspect_of, features, squares
from usfmae.core.bench.finetune import finetune
from usfmae.core.bench.fit import FitRun
from usfmae.core.bench.metrics import COMPARED, PRINTED, Predictions, compare, score
from usfmae.core.bench.probe import probe
from usfmae.core.bench.tasks.base import BenchmarkTask
from usfmae.core.config.bench import BenchSettings
from usfmae.core.files import write_atomic

CELL = 20  # width of a printed column


def scored(task: BenchmarkTask, runs: Predictions | Sequence[Predictions], settings: BenchSettings) -> dict[str, Any]:
    """Scores over all splits, and over the splits that the paper's table shows where those are fewer."""
    several = [runs] if isinstance(runs, Predictions) else list(runs)
    scores = {"all": score(several, settings.resamples, settings.seed)}
    if task.headline and set(task.headline) != {split.name for split in task.splits}:
        scores["headline"] = score([run.of(task.headline) for run in several], settings.resamples, settings.seed)
    return scores


def described(task: BenchmarkTask) -> dict[str, Any]:
    """What a task is, for reports."""
    return {
        "name": task.name,
        "classes": list(task.classes),
        "images": len(task.examples),
        "patients": len(set(task.groups)) if task.groups_known else None,
        "per_class": {name: int((task.labels == k).sum()) for k, name in enumerate(task.classes)},
        "splits": [
            {"name": s.name, "train": len(s.train), "validation": len(s.validation), "test": len(s.test)}
            for s in task.splits
        ],
        "headline": list(task.headline),
        "complete": task.complete,
        "notes": list(task.notes),
    }


def probed(
    task: BenchmarkTask,
    encoder: Encoder,
    settings: BenchSettings,
    cache: Path | None = None,
    progress: Progress | None = None,
    curve: bool = True,
) -> tuple[dict[str, Any], dict[str, Predictions]]:
    """Features, probe and scores of one encoder: a report and the predictions by head."""
    began, aspect = time.perf_counter(), aspect_of(encoder, settings)
    values, cached = features(encoder, task, settings.image_size, cache, progress, aspect)
    ready = time.perf_counter()
    result = probe(task, values, settings, curve=curve)
    report = {
        "model": encoder.name,
        "model_id": encoder.id,
        "width": encoder.width,
        "aspect": aspect,
        "features_cached": cached,
        "feature_seconds": round(ready - began, 3),
        "probe_seconds": round(time.perf_counter() - ready, 3),
        "c": result.chosen,
        "scores": {head: scored(task, predictions, settings) for head, predictions in result.predictions.items()},
        "label_efficiency": result.curve,
    }
    return report, result.predictions


def finetuned(
    task: BenchmarkTask,
    build: Callable[[], Encoder],
    settings: BenchSettings,
    out: Path,
    on_run: Callable[[FitRun, bool], None] | None = None,
) -> dict[str, Any]:
    """Fine-tune on a task and save `report.json` and the probabilities of each seed below `out`."""
    began = time.perf_counter()
    encoder = build()
    pixels = squares(task, settings.image_size, aspect_of(encoder, settings))
    runs, trained = finetune(task, build, pixels, settings.finetune, out, on_run)
    for seed, predictions in zip(settings.finetune.seeds, runs, strict=True):
        save_predictions(out / f"seed-{seed}.csv", task, predictions)
    report = {
        "task": described(task),
        "model": encoder.name,
        "model_id": encoder.id,
        "seeds": list(settings.finetune.seeds),
        "seconds": round(time.perf_counter() - began, 1),
        "runs": [{k: v for k, v in asdict(run).items() if k not in ("probabilities", "weights")} for run in trained],
        "scores": scored(task, runs, settings),
    }
    save_json(out / "report.json", report)
    return report


def paired(first: Predictions, second: Predictions, settings: BenchSettings) -> dict[str, Any]:
    """Paired tests of two models on the same test images, one for each measure that is compared."""
    return {m: compare(first, second, m, settings.resamples, settings.seed) for m in COMPARED}


def save_predictions(path: Path, task: BenchmarkTask, predictions: Predictions) -> None:
    """Per-image probabilities as CSV: id, split, label, predicted, p(class)..."""
    head = ["id", "split", "label", "predicted", *(f"p({name})" for name in task.classes)]
    lines = [",".join(_quoted(text) for text in head)]
    for i, id_ in enumerate(predictions.ids):
        names = (task.classes[predictions.labels[i]], task.classes[predictions.predicted[i]])
        row = [
            _quoted(id_),
            predictions.splits[i],
            *map(_quoted, names),
            *(f"{p:.6g}" for p in predictions.probabilities[i]),
        ]
        lines.append(",".join(row))
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def save_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1, default=_plain) + "\n").encode())


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text


def safe_name(spec: str) -> str:
    """A file name for a model's name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in spec).strip("-.")[-80:]


def table(rows: Sequence[tuple[str, dict[str, Any]]], measures: Sequence[str] = PRINTED) -> list[str]:
    """A head and a line for each named set of scores, in per cent with intervals, in columns."""
    width = max((len(name) for name, _ in rows), default=0) + 2
    columns = [f"{measure:>{CELL}}" for measure in measures]
    lines = [" " * width + "".join(columns)]
    for name, scores in rows:
        cells = (
            f"{100 * scores[m]['value']:.1f} ({100 * scores[m]['low']:.1f}-{100 * scores[m]['high']:.1f})"
            for m in measures
        )
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>{CELL}}" for cell in cells))
    return lines
