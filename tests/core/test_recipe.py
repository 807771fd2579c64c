"""A recipe comes over the wire: what is no recipe is one error, however it is made."""

from __future__ import annotations

import json

import pytest

from usfmae.core.checkpoint_header import recipe_text
from usfmae.core.config import ModelSettings, TrainRecipe
from usfmae.core.config.train import DEEPEST, LONGEST, Recipe, read_recipe
from usfmae.core.errors import ConfigError

SOUND = recipe_text(ModelSettings(), TrainRecipe())


def test_a_recipe_is_read_as_it_was_written() -> None:
    assert read_recipe(SOUND) == Recipe(ModelSettings(), TrainRecipe())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "characters"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "nested"),
        ('{"a":' * 9 + "1" + "}" * 9, "nested"),
        ('"' + "x" * LONGEST + '"', "characters"),
        ('{"model": {}, "train": {"lr": NaN}}', "NaN"),
        ('{"model": {}, "train": {"lr": -Infinity}}', "Infinity"),
        ('{"model": {}}', "train"),
        ("[]", "unreadable"),
        ("", "unreadable"),
        ('"\\', "unreadable"),
        ('{"model": {"width": 1' + "0" * 5000 + '}, "train": {}}', "unreadable"),
    ],
)
def test_what_is_none_is_one_error(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        read_recipe(text)


def test_brackets_in_a_text_are_no_depth() -> None:
    values = json.loads(SOUND)
    values["train"]["replay_corpus"] = "[{" * 100
    assert read_recipe(json.dumps(values)).train.replay_corpus == "[{" * 100
