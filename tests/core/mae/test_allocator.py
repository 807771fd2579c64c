"""Training on a CPU begins itself again under jemalloc where that is installed, and only then."""

from __future__ import annotations

import subprocess
import sys
from ctypes.util import find_library

import pytest

from usfmae.core.mae import allocator

SHOW = "from usfmae.core.mae import allocator; allocator.relaunch(); print(allocator.name())"
installed = pytest.mark.skipif(find_library("jemalloc") is None, reason="libjemalloc2 is not installed")


def shown(**more: str) -> str:
    done = subprocess.run([sys.executable, "-c", SHOW], env={"PATH": "/usr/bin", **more}, stdout=-1, text=True)
    assert done.returncode == 0
    return done.stdout.strip()


@installed
def test_a_process_begins_itself_again_under_jemalloc_once() -> None:
    assert shown() == f"jemalloc ({allocator.TUNING})"
    assert shown(MALLOC_CONF="thp:always") == "jemalloc (thp:always)"


def test_a_persons_own_choice_of_allocator_stands() -> None:
    assert shown(LD_PRELOAD="") == "the system's default"


def test_without_jemalloc_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr(allocator, "find_library", lambda _: None)
    assert allocator.environment() == {}
    allocator.relaunch()  # returns
