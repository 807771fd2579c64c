"""Attacks of the review that need no processes, as rows beside the others of `make test-attacks`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.attack_rows import ROWS, AttackRow
from tests.e2e import tables

pytestmark = [pytest.mark.e2e, pytest.mark.attacks]

ALONE = [row for row in ROWS if "/e2e/" not in row.test]


@pytest.mark.parametrize("row", ALONE, ids=[f"{row.number}-{row.attack[:40]}" for row in ALONE])
def test_an_attack_of_the_review_is_held(row: AttackRow) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", row.test]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    tables.add(
        "attacks", f"{row.number}: {row.attack}"[:60], "held" if done.returncode == 0 else "BROKE", "in the test", "-"
    )
    assert done.returncode == 0, done.stdout[-2000:]
