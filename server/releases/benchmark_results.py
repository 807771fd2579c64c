"""Benchmark results in a model card: of exactly these weights, as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from usfmae.core.bench.encoders.base import Pooling
from usfmae.core.bench.metrics import PRINTED
from usfmae.core.checkpoint import tensors_id
from usfmae.core.config import TrainSettings
from usfmae.core.errors import PolicyError, SourceError
from usfmae.core.types import content_id


def results(paths: Sequence[Path], encoder: dict[str, Tensor], train: TrainSettings) -> list[list[str]]:
    """A table's lines, the head first; empty without results.

    Each file is what `usfmae probe --json` or `usfmae finetune --json` printed. SourceError where it is none,
    PolicyError where it is of other weights than this encoder's.
    """
    own = {content_id(tensors_id(encoder), pooling, str(train.mean), str(train.std)) for pooling in get_args(Pooling)}
    lines = [line for path in paths for line in _lines(path, own)]
    return [["task", "images", "head", "splits", *PRINTED], *lines] if lines else []


def _lines(path: Path, own: set[str]) -> Iterator[list[str]]:
    """The lines of one file."""
    report = _read(path)
    mine = [one for one in report.get("models", [report]) if one.get("model_id") in own]
    if not mine:
        do = "run 'usfmae probe --json' on weights.safetensors of a release of this round, then release again with it"
        raise PolicyError(f"results {path}", "are of other weights than the released encoder", do)
    task = report["task"]
    for one in mine:
        scores = one["scores"]
        heads = {"fine-tuned": scores} if "all" in scores else scores
        for head, parts in heads.items():
            for part, values in parts.items():
                yield [task["name"], str(task["images"]), head, part, *(_cell(values.get(m)) for m in PRINTED)]


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text())
        _ = report["task"]["name"], report["task"]["images"]
        _ = [one["scores"] for one in report.get("models", [report])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise SourceError(
            f"results {path}", "are no report of a benchmark", "give what 'usfmae probe --json' prints"
        ) from None
    return dict(report)


def _cell(measure: dict[str, float] | None) -> str:
    """`63.1 (60.2-66.0)`, in per cent with its interval."""
    if not measure:
        return "-"
    return f"{100 * measure['value']:.1f} ({100 * measure['low']:.1f}-{100 * measure['high']:.1f})"
