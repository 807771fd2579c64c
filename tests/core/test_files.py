"""Locks and files that take their name whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from usfmae.core.files import is_locked, locked, put

ROOT = Path(__file__).parents[2]
HOLDER = (
    "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
)


def test_a_lock_belongs_to_one_living_process(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    assert not is_locked(file), "no file, no lock"
    command = [sys.executable, "-c", HOLDER, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with locked(file) as free:
            assert not free and is_locked(file)
        other.kill()
    with locked(file) as free:
        assert free and not is_locked(tmp_path / "other")
        with locked(file) as again:
            assert not again
    assert not is_locked(file)


def test_several_share_a_lock_and_none_is_alone_then(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", shared=True) as first, locked(tmp_path / "lock", shared=True) as second:
        assert first and second
        with locked(tmp_path / "lock") as alone:
            assert not alone


def test_a_file_takes_its_name_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "a.part").write_text("new")
    put(tmp_path / "a.part", tmp_path / "a")
    assert (tmp_path / "a").read_text() == "new" and not (tmp_path / "a.part").exists()


@pytest.mark.parametrize("room", ["core", "client", "server"])
def test_locks_are_taken_in_one_place(room: str) -> None:
    found = [path for path in (ROOT / room).rglob("*.py") if "flock" in path.read_text()]
    assert found in ([], [ROOT / "core" / "files.py"])
