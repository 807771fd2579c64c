"""Every option once. One file per room holds its settings; `load` reads YAML, environment and overrides."""

from usfmae.core.config.base import Options, keys_of, validated
from usfmae.core.config.clean import CleanSettings
from usfmae.core.config.load import load, shown, template
from usfmae.core.config.read import ReadSettings
from usfmae.core.config.root import Settings
from usfmae.core.config.train import AugmentSettings, ModelSettings, TrainRecipe, TrainSettings

__all__ = [
    "AugmentSettings",
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
