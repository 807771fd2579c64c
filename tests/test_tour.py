"""The tour of the code is true: its files exist, its names are defined where it says, its walks are short."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOUR = (ROOT / "docs" / "tour.md").read_text()
FILE = re.compile(r"`((?:core|client|server)/[\w/]+\.py)`")
STEP = re.compile(r"^\d+\. .*(?:\n   .*)*", re.MULTILINE)
NAME = re.compile(r"`([A-Za-z_]\w*)`")


def walks() -> list[tuple[str, list[str]]]:
    """(title, steps) of each section with numbered steps."""
    sections = (section.partition("\n") for section in TOUR.split("\n## ")[1:])
    return [(title, STEP.findall(text)) for title, _, text in sections if STEP.search(text)]


def defined(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_there_are_two_walks_of_at_most_eight_files() -> None:
    assert [len(set(FILE.findall(" ".join(steps)))) <= 8 for _, steps in walks()] == [True, True]


@pytest.mark.parametrize("step", [step for _, steps in walks() for step in steps], ids=lambda step: step[:40])
def test_each_station_names_files_and_functions_that_exist(step: str) -> None:
    parts = FILE.split(step)[1:]
    assert parts, "a station names its file"
    for file, text in zip(parts[::2], parts[1::2], strict=True):
        assert (ROOT / file).is_file()
        assert set(NAME.findall(text)) <= defined(ROOT / file), file


def test_every_file_named_is_a_link_to_it() -> None:
    linked = re.findall(r"\[`([\w/]+\.py)`\]\(\.\./([\w/]+\.py)\)", TOUR)
    assert [name for name, _ in linked] == [target for _, target in linked] == FILE.findall(TOUR)


@pytest.mark.parametrize("path", sorted(set(FILE.findall(TOUR))))
def test_every_file_named_exists(path: str) -> None:
    assert (ROOT / path).is_file()


def test_the_round_is_read_in_the_order_given() -> None:
    listed = re.findall(r"`(\w+\.py|rules/)`", TOUR.partition("## What a round is")[2].partition("\n## ")[0])
    assert listed and all((ROOT / "core" / "federated" / name).exists() for name in listed)
