"""Time of the safe profile against the paper profile on the same pictures and clips."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usfmae.core.clean import clean, clean_clip
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import Frame

Pixels = NDArray[np.uint8]
Run = Callable[[CleanSettings], object]

SAFE, PAPER = CleanSettings(), CleanSettings(profile="paper")


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _timed(run: Run, settings: CleanSettings) -> float:
    start = _cpu()
    run(settings)
    return _cpu() - start


def _turns(run: Run) -> tuple[float, float]:
    """Seconds of the safe and the paper profile on the same input, in turns; medians."""
    run(SAFE)  # compile for every shape first, as in a long run
    turns = [(_timed(run, SAFE), _timed(run, SAFE), _timed(run, PAPER)) for _ in range(2)]
    safe = statistics.median([t for one, two, _ in turns for t in (one, two)])
    return safe, statistics.median([paper for *_, paper in turns])


def _clip(frames: list[Pixels]) -> Run:
    run = [Frame(pixels, index=i, time=i / 3) for i, pixels in enumerate(frames)]
    return lambda settings: list(clean_clip(iter(run), settings))


def speed(stills: list[Pixels], clips: list[list[Pixels]]) -> dict[str, Any]:
    """CPU seconds, child processes included; the ratio of the sums over stills and over clips."""
    start, table = time.time(), dict[str, Any]()
    runs: dict[str, list[Run]] = {
        "stills": [lambda settings, pixels=pixels: clean(pixels, settings) for pixels in stills],  # type: ignore[misc]
        "clips": [_clip(frames) for frames in clips],
    }
    for kind, each in runs.items():
        pairs = [_turns(run) for run in each]
        table[f"ratio_{kind}"] = round(sum(p for _, p in pairs) / sum(s for s, _ in pairs), 2)
        table[f"seconds_{kind}"] = [round(statistics.mean(column), 3) for column in zip(*pairs, strict=True)]
    return table | {"clock": round(time.time() - start)}
