"""What each hospital of the demo holds: simulated scans with fake identifiers and the real scans in pydicom's wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

from usfmae.core.phantom import Tissue, write_cine, write_still
from usfmae.core.phantom.tissue import Geometry

STILLS, CINES, CINE_FRAMES = 20, 4, 24
WHEEL = ("examples_ybr_color.dcm", "examples_rgb_color.dcm", "examples_palette.dcm")


def write_site(folder: Path, site: int) -> Path:
    """Scans of site 0, 1, ...: linear probe at even sites, sector at odd ones; each with real scans of its own."""
    geometry: Geometry = "sector" if site % 2 else "linear"
    _phantoms(folder, 100 * (site + 1), geometry, STILLS, CINES)
    for name in WHEEL[site % 2 :: 2]:
        _copy_from_wheel(name, folder)
    return folder


def write_public(folder: Path) -> Path:
    """What the coordinator pretrains the seed on: simulated scans of both kinds, and the wheel's real ones."""
    _phantoms(folder / "linear", 1000, "linear", STILLS // 2, CINES // 2)
    _phantoms(folder / "sector", 2000, "sector", STILLS // 2, CINES // 2)
    for name in WHEEL:
        _copy_from_wheel(name, folder)
    return folder


def _phantoms(folder: Path, seed: int, geometry: Geometry, stills: int, cines: int) -> None:
    for index in range(stills):
        write_still(folder / f"still-{index:02d}.dcm", Tissue(seed + index, geometry))
    for index in range(cines):
        write_cine(folder / f"cine-{index:02d}.dcm", Tissue(seed + 50 + index, geometry), CINE_FRAMES)


def _copy_from_wheel(name: str, folder: Path) -> None:
    from pydicom.data import get_testdata_file

    source = get_testdata_file(name, download=False)
    if source:  # absent where a distributor stripped the wheel's test files
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(source), folder / name)
