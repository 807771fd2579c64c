"""Virtual hospitals of a tiny model that are honest, or forget."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.federated.local_round import Trained
from usfmae.server import bootstrap
from usfmae.server.layout import Federation, Layout
from usfmae.server.ledger import Ledger
from usfmae.server.rounds.loop import Clock, Loop
from usfmae.server.simulate import Hospital, InProcess, Trainer

TINY = [
    "model.image_size=32",
    "model.patch_size=8",
    "model.width=16",
    "model.depth=1",
    "model.heads=2",
    "model.decoder_width=16",
    "model.decoder_depth=1",
    "model.decoder_heads=2",
    "train.precision=fp32",
    "train.batch_size=8",
    "train.lr=2e-3",
    "train.schedule=infinite",
    "train.warmup=0.1",
    "rounds.steps=4",
    "min_free_gib=0",
    "gate.norm_limit=1e6",
    "gate.base_limit=100",
    "gate.small_limit=0",  # the honest move less than training would
    "gate.clip_limit=1e6",
    "gate.merged_limit=1e6",
    "gate.direction_limit=-1",
    "continual.panel_images=8",
    "continual.refit_steps=10",
]


def home_with(tmp_path: Path, panel: Path | None, *more: str, seed: Path | None = None) -> Layout:
    chosen = [*TINY, *more, *([f"continual.panel={panel}"] if panel else [])]
    bootstrap.create(tmp_path / "home", bootstrap.NewFederation("test", port=0, seed=seed), chosen)
    return Layout(tmp_path / "home")


def honest(place: Path, request: Any, encoder: dict[str, Any], decoder: Path) -> Trained:
    """A site whose update is small."""
    random = np.random.default_rng([request.round, int(place.name[-3:])])
    moved = {n: (v + random.normal(0, 1e-4, v.shape)).astype(np.float32) for n, v in encoder.items()}
    return Trained(moved, 8, request.steps)


def forgetful(since: int, sites: tuple[str, ...]) -> Trainer:
    """From round `since` on these sites send a model that has forgotten what it knew."""

    def train(place: Path, request: Any, encoder: dict[str, Any], decoder: Path) -> Trained:
        good = honest(place, request, encoder, decoder)
        if request.round < since or place.name not in sites:
            return good
        random = np.random.default_rng([7, request.round])
        wrecked = {n: (v + random.normal(0, 1.0, v.shape)).astype(np.float32) for n, v in encoder.items()}
        return dataclasses.replace(good, encoder=wrecked)

    return train


def loop_of(home: Layout, hospitals: list[Hospital], settings: CoordinatorSettings | None = None) -> Loop:
    federation = Federation(home, Ledger(home.ledger), settings or home.settings())
    return Loop(federation, InProcess(hospitals, home.decoder), Clock(wait=lambda seconds: None))
