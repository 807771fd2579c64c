"""Recipes, never mixed: the paper's text, the authors' notebook, what our own comparison chose, a model for two cores.

`paper` is the default of every key in `config/train.py`; the others state where they differ. The paper leaves open
how its learning rate of 1e-3 is "scaled by batch 64": 1e-3 * 64 / 256 is the reading of the code it builds on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from usfmae.core.config import ModelSettings, Settings, TrainSettings, load, validated
from usfmae.core.config.load import put
from usfmae.core.errors import UsageError

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"train": {"preset": "paper"}},
    "official-notebook": {
        "model": {"decoder_heads": 16},
        "train": {
            "preset": "official-notebook",
            "init_required": True,  # ImageNet MAE weights with their decoder
            "mask_ratio": 0.75,
            "lr": 5e-4,  # 1e-3 * 128 / 256, whatever the batch
            "min_lr": 1e-5,
            "grouped": False,
            "augment": {"crop": "torchvision", "resize": "nearest"},
        },
    },
    # Chosen by benchmarks/objective.py at equal processor seconds, with a small encoder (docs/results/benchmarks.md).
    "best": {
        "train": {
            "preset": "best",
            "mask_ratio": 0.75,
            "norm_pix": True,
            "optimizer": "muon",
            "lr": 1e-3,
            "batch_size": 32,
        },
    },
    "tiny": {
        "model": {
            "image_size": 112,
            "width": 192,
            "depth": 4,
            "heads": 3,
            "decoder_width": 128,
            "decoder_depth": 2,
            "decoder_heads": 4,
        },
        "train": {"preset": "tiny", "lr": 1e-3, "micro_batch": 64, "steps": 300, "checkpoint_steps": 100},
    },
}

# What a trial of the benchmarks changes of `tiny`: an encoder that learns in two minutes what a probe of frozen
# features can show, where `tiny` itself learns hardly more than brightness (docs/results/benchmarks.md).
TRIAL: dict[str, dict[str, Any]] = {
    "model": {
        "image_size": 64,
        "patch_size": 8,
        "width": 128,
        "heads": 4,
        "decoder_width": 64,
        "decoder_depth": 1,
    },
    "train": {"mask_ratio": 0.75, "norm_pix": True, "steps": 1000},
}


def preset(name: str) -> tuple[ModelSettings, TrainSettings]:
    """Settings of a preset. Raises UsageError for an unknown name."""
    settings = validated(Settings, values_of(name), f"preset {name}")
    return settings.model, settings.train


def configure(
    name: str | None,
    file: Path | None = None,
    overrides: Iterable[str] = (),
    beneath: Mapping[str, Mapping[str, Any]] | None = None,
) -> Settings:
    """Settings from a preset, a YAML file, the environment and overrides; later ones win, key by key.

    Without a name the file's or environment's `train.preset` counts, else `paper`. `beneath`: a command's own changes
    of the preset, which all else overrides.
    """
    chosen, origins = load(Settings, file, overrides)
    values = values_of(name or chosen.train.preset)
    for section, changed in (beneath or {}).items():
        values[section] |= changed
    for key in origins:
        value: Any = chosen.model_dump()
        for part in key.split("."):
            value = value[part]
        put(values, key, value)
    if name:
        put(values, "train.preset", name)
    return validated(Settings, values, "configuration")


def values_of(name: str) -> dict[str, Any]:
    """What a preset sets, by section. Raises UsageError for an unknown name."""
    if name not in PRESETS:
        raise UsageError(f"preset {name}", "unknown", f"choose one of {', '.join(PRESETS)}")
    return {section: _copy(values) for section, values in PRESETS[name].items()}


def _copy(values: Any) -> Any:
    return {key: _copy(value) for key, value in values.items()} if isinstance(values, dict) else values
