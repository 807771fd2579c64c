"""What a checkpoint says of itself: the metadata of its file, without the weights and without PyTorch.

Metadata are strings, JSON where structured: `model` and `train` settings (architecture, heads, mask ratio, norm_pix,
mean, std), `recipe` (hash of both), `content` (hash of the weights), `trail`, and whatever the caller adds, such as
`corpus` and `step`. Heads and mask ratio are stated, never guessed: weights for 16 heads fit 8 without error.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from usfmae.core.config import ModelSettings, TrainRecipe, TrainSettings
from usfmae.core.config.train import read_recipe
from usfmae.core.errors import CheckpointError
from usfmae.core.tensors import UNKNOWN
from usfmae.core.types import Trail, recipe_id

FORMAT = "usfmae-1"


def describe(
    model: ModelSettings, train: TrainSettings, *, parents: tuple[str, ...] = (), **more: str | int | float
) -> dict[str, str]:
    """Metadata of new weights. `parents`: content ids of the checkpoints they were made from.

    Their own content id is known when the last byte is written; UNKNOWN, as long, stands in its place until then.
    """
    settings = {"model": model.model_dump(mode="json"), "train": TrainRecipe.of(train).model_dump(mode="json")}
    recipe = recipe_id(settings)
    return {
        **{name: json.dumps(values, sort_keys=True) for name, values in settings.items()},
        "format": FORMAT,
        "recipe": recipe,
        "content": UNKNOWN,
        "trail": json.dumps(dataclasses.asdict(Trail(UNKNOWN, parents, recipe))),
        **{name: str(value) for name, value in more.items()},
    }


def trail_of(metadata: Mapping[str, str]) -> Trail:
    try:
        values: dict[str, Any] = json.loads(metadata.get("trail", "{}"))
        return Trail(**{**values, "parents": tuple(values.get("parents", ()))})
    except (ValueError, TypeError):
        raise CheckpointError("checkpoint metadata 'trail'", "is unreadable", "fetch the file again") from None


def recipe_of(text: str) -> tuple[ModelSettings, TrainRecipe]:
    """The settings in a recipe, the canonical JSON `{"model": ..., "train": ...}`. Raises ConfigError."""
    recipe = read_recipe(text)
    return recipe.model, recipe.train


def recipe_text(model: ModelSettings, train: TrainSettings) -> str:
    """Both settings as canonical JSON: the `recipe` of a TrainRequest."""
    values = {"model": model.model_dump(mode="json"), "train": TrainRecipe.of(train).model_dump(mode="json")}
    return json.dumps(values, sort_keys=True, separators=(",", ":"))
