"""Random rotation, flips and crop on uint8 images: one affine warp each, or torchvision's own steps where asked.

The draws depend on (seed, step) and the row in the batch, never on the worker or on what was drawn before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from usfmae.core.config import AugmentSettings
from usfmae.core.corpus.sampling import generator
from usfmae.core.types import Pixels

RATIO = (3 / 4, 4 / 3)  # torchvision's RandomResizedCrop: range of the crop's aspect ratio
TRIES = 10  # ... and how often it draws before it takes the whole image


@dataclass(frozen=True)
class Draw:
    """What happens to one image, in this order."""

    angle: float  # degrees counter-clockwise about the centre
    flip_horizontal: bool
    flip_vertical: bool
    crop: tuple[float, float, float, float]  # left, top, width, height in pixels; may reach beyond the image


def draws(count: int, size: int, settings: AugmentSettings, seed: int, step: int) -> list[Draw]:
    """The random draws of a whole batch of `count` images of side `size`."""
    random = generator(seed, 3, step)
    crop = {"zoom": _zoom_crop, "torchvision": _area_crop}[settings.crop]
    return [
        Draw(
            float(random.uniform(-settings.rotation if settings.two_sided else 0, settings.rotation)),
            bool(random.random() < 0.5) and settings.flips,
            bool(random.random() < 0.5) and settings.flips,
            crop(random, size, settings),
        )
        for _ in range(count)
    ]


def _zoom_crop(random: np.random.Generator, size: int, settings: AugmentSettings) -> tuple[float, float, float, float]:
    """A square window of side size / zoom, zoom log-uniform: a part of the image above 1, padded below 1."""
    zoom = math.exp(random.uniform(math.log(settings.zoom_min), math.log(settings.zoom_max)))
    side = size / zoom
    room = size - side  # negative where the window is larger than the image
    left, top = random.random(2) * room
    return float(left), float(top), side, side


def _area_crop(random: np.random.Generator, size: int, settings: AugmentSettings) -> tuple[float, float, float, float]:
    """torchvision.transforms.RandomResizedCrop.get_params: windows that do not fit are drawn again."""
    for _ in range(TRIES):
        area = size * size * random.uniform(settings.zoom_min, settings.zoom_max)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= size and 0 < height <= size:
            top = int(random.integers(0, size - height + 1))
            left = int(random.integers(0, size - width + 1))
            return left, top, width, height
    return 0, 0, size, size


def augment(pixels: Pixels | Sequence[Pixels], chosen: Sequence[Draw], size: int, settings: AugmentSettings) -> Pixels:
    """Images (S, S), (S, S, 1) or (S, S, 3) uint8 -> (B, size, size, C) uint8, one Draw for each image.

    C is 3 as soon as one of them has colour. Each is warped in its own channels, which gives the same bits for a third
    of the work.
    """
    change = warp if settings.crop == "zoom" else as_torchvision
    channels = max((image.shape[2] if image.ndim == 3 else 1 for image in pixels), default=1)
    out: Pixels = np.empty((len(pixels), size, size, channels), np.uint8)
    for row, (image, draw) in enumerate(zip(pixels, chosen, strict=True)):
        changed = change(np.atleast_3d(image), draw, size)
        out[row] = changed if changed.ndim == 3 else changed[..., None]
    return out


def warp(image: Pixels, draw: Draw, size: int) -> Pixels:
    """Rotation, flips and crop as one bilinear sampling; black outside."""
    return cv2.warpAffine(  # type: ignore[return-value]
        image, affine(draw, len(image), size), (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )


def affine(draw: Draw, side: int, size: int) -> NDArray[np.float64]:
    """The 2 x 3 matrix from a pixel of the result to a point of the source, pixel centres at whole numbers."""
    left, top, width, height = draw.crop
    centre = (side - 1) / 2
    # Result pixel -> crop window (sampling keeps the outer edges of both in place).
    scale_x, scale_y = width / size, height / size
    window = np.array([[scale_x, 0, left + scale_x / 2 - 0.5], [0, scale_y, top + scale_y / 2 - 0.5], [0, 0, 1]])
    flip_x, flip_y = (-1 if draw.flip_horizontal else 1), (-1 if draw.flip_vertical else 1)
    flip = np.array([[flip_x, 0, centre - flip_x * centre], [0, flip_y, centre - flip_y * centre], [0, 0, 1]])
    cos, sin = math.cos(math.radians(draw.angle)), math.sin(math.radians(draw.angle))
    # Seen from the result, a picture turned counter-clockwise is read clockwise (rows grow downwards).
    turn = np.array(
        [[cos, -sin, centre - cos * centre + sin * centre], [sin, cos, centre - sin * centre - cos * centre], [0, 0, 1]]
    )
    matrix: NDArray[np.float64] = (turn @ flip @ window)[:2]
    return matrix


def as_torchvision(image: Pixels, draw: Draw, size: int) -> Pixels:
    """The official notebook's transforms with the same draws, bit for bit: RandomRotation (nearest), flips, crop."""
    picture = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
    picture = picture.rotate(draw.angle, Image.Resampling.NEAREST)
    if draw.flip_horizontal:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if draw.flip_vertical:
        picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    left, top, width, height = (int(value) for value in draw.crop)
    picture = picture.crop((left, top, left + width, top + height))
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))


def plain(pixels: Pixels, size: int) -> Pixels:
    """No augmentation: (B, S, S, C) -> (B, size, size, C), averaged where it shrinks."""
    if pixels.shape[1] == size:
        return pixels
    filters = cv2.INTER_AREA if size < pixels.shape[1] else cv2.INTER_LINEAR
    resized = [cv2.resize(image, (size, size), interpolation=filters) for image in pixels]
    return np.stack(resized).reshape(len(pixels), size, size, -1).astype(np.uint8)
