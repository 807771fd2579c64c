"""Ids: equal content, equal id; no two different splits of the same bytes collide."""

from __future__ import annotations

from usfmae.core.types import content_id, recipe_id, secret_id


def test_ids_depend_on_content_and_on_where_parts_end() -> None:
    assert content_id("ab", "c") == content_id(b"ab", b"c") != content_id("a", "bc")


def test_a_secret_id_says_nothing_without_the_secret() -> None:
    assert secret_id(b"k", "1.2.3") == secret_id(b"k", "1.2.3") != secret_id(b"other", "1.2.3")


def test_a_recipe_does_not_depend_on_key_order() -> None:
    assert recipe_id({"a": 1, "b": {"c": 2, "d": 3}}) == recipe_id({"b": {"d": 3, "c": 2}, "a": 1})
