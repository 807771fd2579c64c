"""Images of a task as squares, and their features: computed once for an encoder and a set of images, then read back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from usfmae.core.account import user_folder
from usfmae.core.bench.encoders.base import Encoder
from usfmae.core.bench.tasks.base import BenchmarkTask, picture
from usfmae.core.config.bench import BenchSettings
from usfmae.core.corpus.shard import square
from usfmae.core.files import replacing
from usfmae.core.types import CleanImage, Pixels, content_id

Features = NDArray[np.float32]
Aspect = Literal["squash", "keep"]
Progress = Callable[[int, int], None]  # images done, images in all
BATCH = 32


def cache_folder() -> Path:
    """Where features are kept unless a folder is named: `$XDG_CACHE_HOME/usfmae/features`."""
    return user_folder("XDG_CACHE_HOME", ".cache", "set XDG_CACHE_HOME, or name a folder") / "usfmae" / "features"


def squares(task: BenchmarkTask, size: int, aspect: Aspect = "squash") -> Pixels:
    """(N, S, S, C) uint8, C = 1 where every image is gray; the last task's are kept for the next model."""
    key = (images_id(task), size, aspect)
    if key not in _LAST:
        _LAST.clear()
        _LAST[key] = _squares(task, size, aspect)
    return _LAST[key]


_LAST: dict[tuple[str, int, str], Pixels] = {}


def aspect_of(encoder: Encoder, settings: BenchSettings) -> Aspect:
    """How a task's images are made square: as the settings say, else as the encoder's own were."""
    return encoder.aspect if settings.aspect == "auto" else settings.aspect


def _squares(task: BenchmarkTask, size: int, aspect: Aspect) -> Pixels:
    images = [_square(picture(example), size, aspect) for example in task.examples]
    gray = all(image.ndim == 2 for image in images)
    channels = 1 if gray else 3
    return np.stack([np.broadcast_to(i if i.ndim == 3 else i[..., None], (size, size, channels)) for i in images])


def _square(pixels: Pixels, size: int, aspect: Aspect) -> Pixels:
    return square(CleanImage(pixels, np.zeros(pixels.shape[:2], bool)), size, "", aspect=aspect).pixels


def images_id(task: BenchmarkTask) -> str:
    """Hash of the bytes of every image, in order."""
    return content_id(*(hashlib.sha256(example.entry.read()).digest() for example in task.examples))


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def features(
    encoder: Encoder,
    task: BenchmarkTask,
    size: int,
    cache: Path | None = None,
    progress: Progress | None = None,
    aspect: Aspect = "squash",
) -> tuple[Features, bool]:
    """(N, D) features of every image of a task, and whether they were read from the cache.

    The key is the encoder's weights and pooling, the images' bytes, the size and the aspect; a damaged entry is computed again.
    """
    folder = cache or cache_folder()
    path = folder / f"{content_id('features-2', encoder.id, images_id(task), str(size), aspect)[:40]}.npy"
    cached = _kept(path, (len(task.examples), encoder.width))
    if cached is not None:
        return cached, True
    values = compute(encoder, squares(task, size, aspect), progress)
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, values)
    return values, False


def _kept(path: Path, shape: tuple[int, int]) -> Features | None:
    try:
        values: Features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return values if values.shape == shape and values.dtype == np.float32 and np.isfinite(values).all() else None


def compute(encoder: Encoder, pixels: Pixels, progress: Progress | None = None) -> Features:
    """Features (N, D) of images (N, S, S, C) uint8."""
    where = device()
    module = encoder.module.to(where).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels), BATCH):
            images = torch.from_numpy(np.ascontiguousarray(pixels[start : start + BATCH])).to(where)
            parts.append(module(encoder.prepare(images)).float().cpu().numpy())
            if progress:
                progress(min(start + BATCH, len(pixels)), len(pixels))
    return np.concatenate(parts)
