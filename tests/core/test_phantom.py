"""Simulated scans: repeatable, moving, with ink exactly where the truth says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom

from usfmae.core.phantom import Tissue, draw_screen, simulate, write_cine, write_still


def test_the_same_seed_is_the_same_picture_and_another_is_not() -> None:
    (one,), _ = simulate(Tissue(3))
    (again,), _ = simulate(Tissue(3))
    (other,), _ = simulate(Tissue(4))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_sector_is_black_outside_and_speckled_inside() -> None:
    (image,), region = simulate(Tissue(1, "sector"))
    assert not image[~region].any()
    assert 40 < image[region].mean() < 160 and image[region].std() > 20


def test_a_cine_moves_but_keeps_its_overlay() -> None:
    images, _ = simulate(Tissue(5), frames=4)
    screens = [draw_screen(i, 5) for i in images]
    assert np.abs(images[0].astype(int) - images[3]).mean() > 3
    assert np.array_equal(screens[0].ink[:60], screens[3].ink[:60])


def test_ink_is_all_that_differs_from_clean() -> None:
    (image,), _ = simulate(Tissue(2))
    screen = draw_screen(image, 2)
    assert np.array_equal(screen.pixels[~screen.ink], screen.clean[~screen.ink])
    assert screen.ink.any() and len(screen.strings) == 6


def test_written_dicoms_read_back_with_pixels_rate_and_region(tmp_path: Path) -> None:
    still = write_still(tmp_path / "s.dcm", Tissue(7))
    cine = write_cine(tmp_path / "c.dcm", Tissue(8, "sector"), frames=5)
    data = pydicom.dcmread(tmp_path / "s.dcm")
    assert np.array_equal(data.pixel_array, still.pixels) and str(data.PatientName) == still.name
    clip = pydicom.dcmread(tmp_path / "c.dcm")
    assert clip.NumberOfFrames == 5 and float(clip.FrameTime) > 0
    assert np.array_equal(clip.pixel_array[4], cine[4].pixels)
    region = clip.SequenceOfUltrasoundRegions[0]
    assert region.RegionLocationMaxX1 < clip.Columns and region.RegionLocationMaxY1 < clip.Rows
