"""Locks and files that take their name whole."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from usfmae.core import files
from usfmae.core.files import copy_atomic, is_locked, locked, put, write_atomic

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


def test_a_copy_of_a_large_file_never_stands_in_memory(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\1" * 2**24)
    (tmp_path / "b").write_text("old")
    tracemalloc.start()
    copy_atomic(tmp_path / "a", tmp_path / "b")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert (tmp_path / "b").stat().st_size == 2**24 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("room", ["core", "client", "server"])
def test_locks_are_taken_in_one_place(room: str) -> None:
    found = [path for path in (ROOT / room).rglob("*.py") if "flock" in path.read_text()]
    assert found in ([], [ROOT / "core" / "files.py"])


@pytest.mark.parametrize("way", ["write_atomic", "put"])
def test_bytes_and_name_are_on_disk_before_anybody_may_rely_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The file is flushed before it takes its name, the folder after: a power cut leaves the old file or the new one."""
    done: list[str] = []
    flush, replace = files.flush, Path.replace

    def flushed(path: Path) -> None:
        done.append("folder" if path == tmp_path else "bytes")
        flush(path)

    def renamed(old: Path, new: Path) -> Path:
        done.append("name")
        return replace(old, new)

    monkeypatch.setattr(files, "flush", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    if way == "put":
        (tmp_path / "a.part").write_bytes(b"new")
        put(tmp_path / "a.part", tmp_path / "a")
    else:
        write_atomic(tmp_path / "a", b"new")
    assert done == ["bytes", "name", "folder"] and (tmp_path / "a").read_bytes() == b"new"
