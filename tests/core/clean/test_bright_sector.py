"""Bright fine speckle in a sector looks like print to a text detector; it must stay, and the ink must go."""

from __future__ import annotations

import pytest

from usfmae.core.clean import clean
from usfmae.core.config import CleanSettings
from usfmae.core.phantom import Tissue, draw_screen, simulate
from usfmae.core.types import CleanImage, Frame


@pytest.mark.parametrize("seed", [3, 205])
def test_speckle_stays_and_ink_goes(seed: int) -> None:
    (image,), _ = simulate(Tissue(seed, "sector"))
    screen = draw_screen(image, seed)
    done = clean(Frame(screen.pixels), CleanSettings())
    assert isinstance(done, CleanImage)
    tissue = screen.clean.any(axis=2) & ~screen.ink
    assert (done.mask & tissue).sum() / tissue.sum() < 0.1  # more than half of it, where speckle is taken for print
    assert done.mask[screen.ink].mean() > 0.99
