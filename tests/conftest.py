"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Before anything imports a numeric library: tests share their cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
# A shell that runs the tests in the background has them ignore Ctrl-C, and all they start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real ultrasound; tests that need it skip where it is absent, saying so."""
    folder = Path(os.environ.get("USFMAE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "index.csv").is_file():
        pytest.skip(f"no real ultrasound at {folder}; set USFMAE_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def wheel_dicoms() -> list[Path]:
    """The real colour ultrasound that pydicom's wheel ships: needs no download."""
    from pydicom.data import get_testdata_file

    names = ("examples_ybr_color.dcm", "examples_rgb_color.dcm", "examples_palette.dcm")
    return [Path(str(get_testdata_file(name, download=False))) for name in names]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)
