"""A disk that is really full: a small tmpfs, DCMTK's sender, no floor that would stop the intake in time."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import dcmread

from tests.ports import free_port
from usfmae.client.intake.cstore import listen
from usfmae.client.intake.spool import PARTIAL, Spool
from usfmae.core.config.sources import CstoreSettings

from .conftest import tiny

pytestmark = pytest.mark.system


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one mebibyte."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a tmpfs")
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_on_a_full_disk_the_sender_hears_it_and_nothing_it_was_told_is_stored_is_lost(
    small_disk: Path, storescu: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    tiny(tmp_path / "sent", 400)  # a page of memory each: more than fits
    spool, port = Spool(small_disk / "spool", b"s" * 32), free_port()
    running = listen(CstoreSettings(port=port, allow=("PACS1",)), spool)
    try:
        first = storescu(port, tmp_path / "sent", options="+sd -nh")
        heard = (first.stdout + first.stderr).count("Received Store Response (Success)")
        assert "Refused: OutOfResources" in first.stdout + first.stderr
        assert 0 < heard < 400 and heard == len(spool.files())
        assert not list((small_disk / PARTIAL).iterdir()), "half a file was left"
        assert all(len(dcmread(file).PixelData) == 256 for file in spool.files())
        spool.drop(spool.files())  # as after packing
        again = storescu(port, tmp_path / "sent" / "399.dcm")
        assert re.search(r"Success", again.stdout + again.stderr) and len(spool.files()) == 1
    finally:
        running.stop()
