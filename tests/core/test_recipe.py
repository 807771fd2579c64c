"""A recipe comes over the wire: what is no recipe is one error, however it is made."""

from __future__ import annotations

import time

import pytest

from usfmae.core.checkpoint_header import recipe_text
from usfmae.core.config import ModelSettings, TrainRecipe
from usfmae.core.config.train import LONGEST, MOST_BRACKETS, Recipe, read_recipe
from usfmae.core.errors import ConfigError

SOUND = recipe_text(ModelSettings(), TrainRecipe())


def test_a_recipe_is_read_as_it_was_written() -> None:
    assert read_recipe(SOUND) == Recipe(ModelSettings(), TrainRecipe())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "characters"),
        ("[" * (MOST_BRACKETS + 1) + "]" * (MOST_BRACKETS + 1), "brackets"),
        ('{"a":' * 33 + "1" + "}" * 33, "brackets"),
        ('{"a":"' + "]" * 2000 + '","b":' + "[" * 1500 + "]" * 1500 + "}", "brackets"),
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


def test_no_text_takes_long_to_refuse() -> None:
    began = time.process_time()
    with pytest.raises(ConfigError):
        read_recipe('{"a":"' + '\\"' * (LONGEST // 2 - 10))
    assert time.process_time() - began < 1
