"""Every option once. Each part of the program has a file with its settings; `load` reads YAML, environment and overrides."""

from __future__ import annotations

from usfmae.core.config.base import Options, keys_of, validated
from usfmae.core.config.bench import BenchSettings
from usfmae.core.config.clean import CleanSettings
from usfmae.core.config.load import load, shown, template
from usfmae.core.config.read import ReadSettings
from usfmae.core.config.train import AugmentSettings, DpSettings, ModelSettings, TrainRecipe, TrainSettings

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
