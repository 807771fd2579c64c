"""The settings tree of `usfmae`."""

from __future__ import annotations

from usfmae.core.config.base import Options
from usfmae.core.config.bench import BenchSettings
from usfmae.core.config.clean import CleanSettings
from usfmae.core.config.read import ReadSettings
from usfmae.core.config.train import ModelSettings, TrainSettings


class Settings(Options):
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
