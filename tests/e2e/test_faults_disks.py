"""Real full disks at either side, in each phase that writes: the round waits, says so, and ends with the same bytes.

The disk is a tmpfs of a few megabytes with a ballast file that takes the rest of it for a while.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import tables
from tests.e2e.federation import Federation

pytestmark = pytest.mark.faults

ROUNDS = 2
SIZE = 24  # MiB


class Disk:
    """A small file system over a directory, which keeps what was in it."""

    def __init__(self, place: Path) -> None:
        self.place, aside = place, place.with_name(place.name + ".aside")
        place.rename(aside)
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "tmpfs", str(place)], check=True)
        shutil.copytree(aside, place, dirs_exist_ok=True)

    @property
    def ballast(self) -> Path:
        return self.place / "ballast"

    def fill(self) -> None:
        """Leave not one byte."""
        with self.ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    def free(self) -> None:
        self.ballast.unlink()

    def remove(self) -> None:
        subprocess.run(["umount", "-l", str(self.place)], check=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Federation, str]:
    if os.geteuid():
        pytest.skip("needs root to mount a small disk")
    root = tmp_path_factory.mktemp("disks")
    template = Federation(root / "template", 2, **{"rounds.steps": 12})
    return template, template.calm(root / "calm", ROUNDS)[-1]


@pytest.fixture
def running(undisturbed, tmp_path) -> Iterator[Federation]:
    federation = undisturbed[0].copy(tmp_path / "run")
    yield federation
    federation.stop()


CASES = [
    ("aggregator", "upload"),
    ("aggregator", "merging"),
    ("aggregator", "written, not committed"),
    ("hospital", "download"),
    ("hospital", "training"),
    ("hospital", "packed, result not written"),
]


@pytest.mark.parametrize(("side", "phase"), CASES)
def test_a_full_disk_holds_the_round_and_changes_no_bit(undisturbed, running, side, phase):
    began = time.monotonic()
    folder = running.held()
    (folder / phase).write_text("")
    places = {"aggregator": [running.home.root], "hospital": [site.root for site in running.sites.values()]}
    disks = [Disk(place) for place in places[side]]
    try:
        running.start_server(ROUNDS)
        running.start_sites()
        taken = folder / f"{phase}.taken"
        running.wait(phase, taken.exists)
        for disk in disks:
            disk.fill()
        taken.unlink()
        running.wait("a word about the disk", lambda: said(running), 60)
        assert running.status()["open_round"] == 1
        for disk in disks:
            disk.free()
        running.wait_rounds(ROUNDS)
        running.stop()
        sites, rounds = running.names, range(1, ROUNDS + 1)
        found = tables.fault(running, phase, f"disk of the {side} full", undisturbed[1], rounds, sites, began)
        assert found == (True, 0, [sites] * ROUNDS)
        running.verify_logs()
    finally:
        running.stop()
        for disk in disks:
            disk.remove()


def said(federation: Federation) -> bool:
    """Whether some program's log tells of the full disk."""
    text = " ".join(file.read_text() for file in federation.root.glob("*.log"))
    return any(words in text for words in ("is full", "No space left", " GB free", "tried again every 30 s"))
