"""The leaderboard: totals of a score, one entry a cleaner and seed, tables of different parts apart."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "yardstick"))

import board

PART = {"seed": 7, "count": 3}
ROWS = {
    "clean": {"pictures": 3, "strings": 0, "kept_back": 1, "tissue_changed_mean": 0.01},
    "clean-flow": {"pictures": 3, "strings": 0, "kept_back": 3, "tissue_changed_mean": 0.0},
    "tissue": {"pictures": 3, "strings": 9, "left": 2, "kept_back": 1, "tissue_changed_mean": 0.3},
    "graphics": {"pictures": 3, "strings": 0, "graphics_removed": 0.9, "tissue_changed_mean": 0.3},
    "moving": {"pictures": 48, "strings": 40, "left": 5, "tissue_changed_mean": 0.3},
}


def test_totals_keep_stills_clips_and_clean_pictures_apart() -> None:
    entry = board.entry_of(ROWS, "mine 1", PART)
    assert (entry.left, entry.strings, entry.clip_left, entry.clip_strings) == (2, 9, 5, 40)
    assert (entry.kept_back, entry.stills, entry.clean_kept_back, entry.clean_stills) == (1, 6, 4, 6)
    assert entry.tissue_changed == 1.0  # of the kind that was kept, not of the one that was kept back whole
    assert entry.graphics_removed == 0.9 and entry.seconds is None


def test_seconds_are_the_median_of_the_cleaners_own(tmp_path: Path) -> None:
    (tmp_path / "seconds.json").write_text('{"a": 0.1, "b": 0.5, "c": 0.2}')
    assert board.entry_of(ROWS, "mine 1", PART, cleaned=tmp_path).seconds == 0.2


def test_an_entry_is_replaced_and_the_table_ranks_what_leaves_least_first(tmp_path: Path) -> None:
    worse = {**ROWS, "tissue": {**ROWS["tissue"], "left": 8}}
    board.enter(board.entry_of(worse, "mine 1", PART), tmp_path)
    board.enter(board.entry_of(worse, "theirs 2", PART), tmp_path)
    board.enter(board.entry_of(ROWS, "mine 1", PART), tmp_path)
    names = [one["name"] for one in json.loads((tmp_path / "leaderboard.json").read_text())]
    assert names == ["mine 1", "theirs 2"]
    text = (tmp_path / "LEADERBOARD.md").read_text()
    assert "| mine 1 | 2 of 9 | 5 of 40 |" in text and text.index("mine 1") < text.index("theirs 2")


def test_parts_of_other_seeds_or_sizes_stand_in_tables_of_their_own(tmp_path: Path) -> None:
    for part in (PART, {"seed": 8, "count": 3}, {"seed": 7, "count": 10}):
        board.enter(board.entry_of(ROWS, "mine 1", part), tmp_path)
    assert (tmp_path / "LEADERBOARD.md").read_text().count("## Seed") == 3
