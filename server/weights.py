"""What the aggregator's checkpoints say of themselves, without torch; core.checkpoint writes and reads the same."""

from __future__ import annotations

import dataclasses
import json

from usfmae.core.config import ModelSettings, TrainRecipe, TrainSettings
from usfmae.core.tensors import UNKNOWN
from usfmae.core.types import Trail, recipe_id

FORMAT = "usfmae-1"


def describe(
    model: ModelSettings, train: TrainSettings, parents: tuple[str, ...], **more: str | int | float
) -> dict[str, str]:
    """Metadata of a checkpoint as core.checkpoint writes it, with UNKNOWN for the content still to come."""
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


def recipe_text(model: ModelSettings, train: TrainSettings) -> str:
    """The `recipe` of a TrainRequest: both settings as canonical JSON, as core.checkpoint writes it."""
    values = {"model": model.model_dump(mode="json"), "train": TrainRecipe.of(train).model_dump(mode="json")}
    return json.dumps(values, sort_keys=True, separators=(",", ":"))
