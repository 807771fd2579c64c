"""The recipe of a request: model and training settings as canonical JSON, read with limits since it comes over a wire."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from usfmae.core.config.train import ModelSettings, TrainRecipe
from usfmae.core.errors import ConfigError

LONGEST = 64 * 1024  # bytes; ours has about 1,500
DEEPEST = 8  # brackets inside brackets; ours has 3
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class Recipe:
    """What a campaign computes: the architecture and how it is trained."""

    model: ModelSettings
    train: TrainRecipe


def read_recipe(text: str) -> Recipe:
    """The settings in `{"model": ..., "train": ...}`. ConfigError where it is too long, too deep or not that."""
    try:
        _check_limits(text)
        values = json.loads(text, parse_constant=_no_number)
        return Recipe(ModelSettings.model_validate(values["model"]), TrainRecipe.model_validate(values["train"]))
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise ConfigError("recipe", f"unreadable: {reason:.200}", "update usfmae on the older side") from None


def _check_limits(text: str) -> None:
    """ValueError where parsing `text` could cost more than a recipe is worth; looks at brackets alone."""
    if len(text) > LONGEST:
        raise ValueError(f"{len(text)} characters, at most {LONGEST}")
    depth = 0
    for sign in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if sign in "[{" else -1
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST}")


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")
