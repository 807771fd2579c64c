"""The table of attacks is true: every test in it exists, and docs/results/faults.md shows it as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.attack_rows import BOUNDARIES, ROWS, as_table

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("test", sorted({row.test for row in ROWS} | {boundary[3] for boundary in BOUNDARIES}))
def test_a_test_of_the_table_exists(test: str) -> None:
    path, name = test.split("::")
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), test


def test_the_page_shows_the_table() -> None:
    assert as_table() in (ROOT / "docs" / "results" / "faults.md").read_text()


def test_every_attack_that_broke_the_first_version_is_in_it() -> None:
    assert len({row.number for row in ROWS if isinstance(row.number, int)}) == 43
