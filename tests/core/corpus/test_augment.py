"""Augmentation: one warp that does what its draws say; torchvision's own result where the notebook's mode is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from usfmae.core.config import AugmentSettings
from usfmae.core.corpus.augment import Draw, as_torchvision, augment, draws, plain, warp
from usfmae.core.types import Pixels

NOTEBOOK = AugmentSettings(crop="torchvision")


def picture(side: int = 64, channels: int = 1) -> Pixels:
    """Smooth, without symmetry."""
    row, column = np.mgrid[0:side, 0:side] / side
    values = [128 + 60 * np.sin(3 * row + k) + 60 * np.cos(5 * column * row + k) for k in range(channels)]
    return np.stack(values, axis=-1).clip(0, 255).astype(np.uint8)


def whole(side: int = 64) -> tuple[float, float, float, float]:
    return 0, 0, side, side


def test_doing_nothing_changes_nothing() -> None:
    image = picture()
    assert np.array_equal(warp(image, Draw(0, False, False, whole()), 64), image[..., 0])


@pytest.mark.parametrize("channels", [1, 3])
def test_flips_and_quarter_turns_are_exact(channels: int) -> None:
    image = picture(channels=channels)

    def warped(draw: Draw) -> Pixels:
        return warp(image, draw, 64).reshape(image.shape)

    assert np.array_equal(warped(Draw(0, True, False, whole())), image[:, ::-1])
    assert np.array_equal(warped(Draw(0, False, True, whole())), image[::-1])
    turned = warped(Draw(90, False, False, whole()))
    assert np.abs(turned.astype(int) - np.rot90(image).astype(int)).max() <= 1  # counter-clockwise


def test_the_warp_is_rotation_then_flips_then_crop() -> None:
    """Against the same steps one after another with torchvision; the two sample differently, by little."""
    image = picture(128)
    draw = Draw(30, True, False, (20, 30, 64, 64))
    steps = TF.rotate(Image.fromarray(image[..., 0]), 30, T.InterpolationMode.BILINEAR)
    steps = TF.resized_crop(TF.hflip(steps), 30, 20, 64, 64, [96, 96])
    one = warp(image, draw, 96).astype(int)
    assert np.abs(one - np.asarray(steps).astype(int))[4:-4, 4:-4].mean() < 1.5


def test_zooming_out_pads_with_black_and_zooming_in_shows_a_part() -> None:
    image = np.full((64, 64, 1), 200, np.uint8)
    out = warp(image, Draw(0, False, False, (-32, -32, 128, 128)), 64)
    assert (out == 0).mean() == pytest.approx(0.75, abs=0.05)
    assert (warp(image, Draw(0, False, False, (16, 16, 32, 32)), 64) == 200).all()


def test_the_paper_zooms_from_half_to_double_with_the_window_inside_or_around() -> None:
    chosen = draws(2000, 100, AugmentSettings(), seed=0, step=0)
    sides = np.array([d.crop[2] for d in chosen])
    assert sides.min() >= 50 and sides.max() <= 200 and (sides > 100).mean() == pytest.approx(0.5, abs=0.05)
    for d in chosen:
        left, top, width, height = d.crop
        assert width == height
        assert min(0, 100 - width) <= left <= max(0, 100 - width) and min(0, 100 - width) <= top <= max(0, 100 - width)
    assert min(d.angle for d in chosen) >= 0 and 85 < max(d.angle for d in chosen) <= 90
    assert np.mean([d.flip_horizontal for d in chosen]) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_notebook_mode_gives_torchvisions_pixels_for_torchvisions_draws(channels: int) -> None:
    image = picture(96, channels)
    pil = Image.fromarray(image if channels == 3 else image[..., 0])
    for seed in range(20):
        torch.manual_seed(seed)
        angle = T.RandomRotation.get_params([0.0, 90.0])
        top, left, height, width = T.RandomResizedCrop.get_params(pil, [0.5, 2.0], [3 / 4, 4 / 3])
        flip = seed % 2 == 0
        theirs = TF.rotate(pil, angle, T.InterpolationMode.NEAREST)
        theirs = TF.hflip(theirs) if flip else theirs
        theirs = TF.vflip(theirs) if seed % 3 == 0 else theirs
        theirs = TF.resized_crop(theirs, top, left, height, width, [96, 96])
        ours = as_torchvision(image, Draw(angle, flip, seed % 3 == 0, (left, top, width, height)), 96)
        assert np.array_equal(ours, np.asarray(theirs))


def test_the_notebook_mode_draws_like_torchvision() -> None:
    """Areas above the whole image are drawn again: the mean kept area is 0.69 to 0.71, about one in twenty is whole."""
    ours = [d.crop for d in draws(4000, 224, NOTEBOOK, seed=1, step=0)]
    blank = Image.new("L", (224, 224))
    torch.manual_seed(0)
    theirs = [T.RandomResizedCrop.get_params(blank, [0.5, 2.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    our_area = np.array([w * h for _, _, w, h in ours]) / 224**2
    their_area = np.array([h * w for _, _, h, w in theirs]) / 224**2
    assert our_area.mean() == pytest.approx(their_area.mean(), abs=0.01)
    assert our_area.std() == pytest.approx(their_area.std(), abs=0.01)
    assert (our_area == 1).mean() == pytest.approx((their_area == 1).mean(), abs=0.015)
    assert np.mean([c[0] for c in ours]) == pytest.approx(np.mean([t[1] for t in theirs]), abs=1.5)


def test_draws_depend_on_seed_and_step_alone_and_rows_differ() -> None:
    one = draws(8, 64, AugmentSettings(), seed=5, step=9)
    assert one == draws(8, 64, AugmentSettings(), seed=5, step=9)
    assert one != draws(8, 64, AugmentSettings(), seed=5, step=10)
    assert len({d.angle for d in one}) == 8


@pytest.mark.parametrize("settings", [AugmentSettings(), NOTEBOOK])
@pytest.mark.parametrize("channels", [1, 3])
def test_batches_keep_their_shape(settings: AugmentSettings, channels: int) -> None:
    pixels = np.stack([picture(64, channels)] * 3)
    assert augment(pixels, draws(3, 64, settings, 0, 0), 32, settings).shape == (3, 32, 32, channels)
    assert plain(pixels, 32).shape == (3, 32, 32, channels)
