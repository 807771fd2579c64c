"""Every option once. Each part of the program has a file with its settings; `load` reads YAML, environment and overrides."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from usfmae.core.config.base import Options, keys_of, validated
from usfmae.core.config.bench import BenchSettings
from usfmae.core.config.clean import CleanSettings
from usfmae.core.config.load import filled, load, shown, template
from usfmae.core.config.read import ReadSettings
from usfmae.core.config.train import (
    AugmentSettings,
    DpSettings,
    ModelSettings,
    TrainRecipe,
    TrainSettings,
    check_patches,
)

__all__ = [
    "AugmentSettings",
    "DpSettings",
    "CleanSettings",
    "ModelSettings",
    "Options",
    "ReadSettings",
    "Settings",
    "TrainRecipe",
    "TrainSettings",
    "filled",
    "keys_of",
    "load",
    "shown",
    "template",
    "validated",
]


class Settings(Options):
    """The settings tree of `usfmae`."""

    read: ReadSettings = ReadSettings()
    """Reading scans."""
    clean: CleanSettings = CleanSettings()
    """Removing everything that is not tissue."""
    model: ModelSettings = ModelSettings()
    """The masked autoencoder."""
    train: TrainSettings = TrainSettings()
    """The training loop."""
    bench: BenchSettings = BenchSettings()
    """Benchmarks."""

    @model_validator(mode="after")
    def _patches(self) -> Self:
        check_patches(self.model, self.train)
        return self
