"""The scan region: tissue that a codec has smeared belongs to it, what is printed beside it does not."""

from __future__ import annotations

import cv2
import numpy as np

from usfmae.core.clean.morphology import components
from usfmae.core.clean.region import measured
from usfmae.core.types import Pixels


def smeared(seed: int = 0) -> Pixels:
    """A scan (400, 400) of which the lower half has come out of a codec as flat blocks of drifting levels."""
    rng = np.random.default_rng(seed)
    speckle = cv2.GaussianBlur(rng.rayleigh(60, (400, 400)), (0, 0), 1.6)
    blocks = np.kron(rng.integers(30, 44, (13, 25)), np.ones((16, 16)))[:200]
    return np.clip(np.vstack([speckle[:200], blocks]), 0, 255).astype(np.uint8)


def test_smeared_tissue_is_inside() -> None:
    assert measured(smeared())[0][205:395, 5:395].mean() > 0.98


def test_a_banner_beside_the_scan_is_outside() -> None:
    screen = np.zeros((520, 640), np.uint8)
    screen[100:500, 120:520] = smeared()
    screen[:40] = 58
    cv2.putText(screen, "GARCIA JOSE  ID 1234567", (20, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 2, cv2.LINE_AA)
    region, _ = measured(screen)
    assert not region[:60].any()
    assert region[105:495, 125:515].mean() > 0.98


def test_an_empty_mask_has_no_parts() -> None:
    assert list(components(np.zeros((40, 60), bool))) == []
    assert list(components(np.zeros((40, 60), bool), pad=5)) == []


def test_parts_come_with_their_surroundings() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:14, 50:58] = mask[0:2, 0:3] = True
    found = {(rows.start, columns.start): part for (rows, columns), part in components(mask, pad=5)}
    assert set(found) == {(0, 0), (5, 45)}
    assert found[5, 45].shape == (14, 15)
    assert found[5, 45][5:9, 5:13].all() and found[5, 45].sum() == 32


def test_what_was_cut_off_though_it_looks_like_a_far_field_is_told() -> None:
    rng = np.random.default_rng(0)
    screen = np.zeros((400, 400), np.uint8)
    screen[40:240, 100:300] = np.clip(cv2.GaussianBlur(rng.rayleigh(60, (200, 200)), (0, 0), 1.5), 5, 255)
    assert measured(screen)[1] == 0
    screen[330:365, 180:215] = rng.integers(5, 40, (35, 35))  # lit, apart and too small to be taken for tissue
    region, cut = measured(screen)
    assert not region[330:365, 180:215].any()
    assert 0.015 < cut < 0.05
