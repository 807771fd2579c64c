"""Batches on a GPU: uint8 from the corpus, augmented there by one affine sampling, copied while the step before computes.

Draws of order, masks and augmentation are the ones of the CPU's path, so a run is the same run on either; pixels equal
within half a gray level. A corpus that fits stays in the device's memory and is copied once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from usfmae.core.config import TrainSettings
from usfmae.core.corpus.augment import affine
from usfmae.core.corpus.batch import Corpus, MixedPixels, Positions
from usfmae.core.corpus.loader import BatchDraws, Loader, Prepared
from usfmae.core.types import Pixels


def normalise(pixels: Pixels | MixedPixels, settings: TrainSettings, device: torch.device) -> Tensor:
    """(B, S, S, C) uint8 -> (B, 3, S, S) float on the device; gray becomes three equal channels first."""
    if isinstance(pixels, MixedPixels):
        gray, colour = (normalise(part, settings, device) for part in (pixels.gray, pixels.colour))
        return _woven(gray, colour, pixels.coloured)
    images = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return normalised(images.permute(0, 3, 1, 2), settings)


def _woven(gray: Tensor, colour: Tensor, coloured: NDArray[np.bool_]) -> Tensor:
    """Images (G, 3, S, S) and (B - G, 3, S, S) in the order (B,) that says which have colour."""
    whole = colour.new_empty(len(coloured), *colour.shape[1:])
    for part, kind in ((gray, ~coloured), (colour, coloured)):
        whole[_moved(np.flatnonzero(kind), whole.device)] = part
    return whole


def normalised(images: Tensor, settings: TrainSettings) -> Tensor:
    """(B, C, S, S) of gray levels 0 to 255 -> (B, 3, S, S) float."""
    images = images.expand(-1, 3, -1, -1).float()
    if images.stride(1) == 0:  # gray that is float already: the channels share their memory
        images = images.contiguous()
    device = images.device
    return images.div_(255).sub_(_channels(settings.mean, device)).div_(_channels(settings.std, device))


@lru_cache(maxsize=8)  # a copy to a GPU waits for it
def _channels(values: tuple[float, float, float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(3, 1, 1)


SHARE = 0.5  # of the device's free memory that a resident corpus may take


@dataclass(frozen=True)
class DeviceBatch:
    """One process's rows of one optimizer step, on the device and not augmented yet."""

    step: int
    pixels: Tensor  # (B, C, S, S) uint8 as they lie in the corpus
    matrices: Tensor  # (B, 2, 3) float32, from a pixel of the result to a point of the source
    noise: Tensor  # (B, L) mask noise
    ids: tuple[str, ...]
    size: int  # side of the result in pixels

    def __len__(self) -> int:
        return len(self.ids)

    def images(self, rows: slice, settings: TrainSettings) -> Tensor:
        """(B, 3, size, size) float, augmented and normalised."""
        return normalised(sampled(self.pixels[rows], self.matrices[rows], self.size), settings)


def sampled(pixels: Tensor, matrices: Tensor, size: int) -> Tensor:
    """(B, C, S, S) uint8 under (B, 2, 3) -> (B, C, size, size) float of 0 to 255: bilinear, black outside."""
    count, channels, height, width = pixels.shape
    # Where each pixel of the result lies in its source: (B, size, size) of x and of y.
    row, column = torch.meshgrid(*(torch.arange(size, device=pixels.device),) * 2, indexing="ij")
    m = matrices[..., None, None]
    x = m[:, 0, 0] * column + m[:, 0, 1] * row + m[:, 0, 2]
    y = m[:, 1, 0] * column + m[:, 1, 1] * row + m[:, 1, 2]
    left, top = x.floor(), y.floor()
    right_share, lower_share = x - left, y - top

    flat, result = pixels.flatten(2), torch.zeros(count, channels, size * size, device=pixels.device)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        # One of the four neighbours: its weight, which is none outside of the source, and its samples.
        weight = (right_share if dx else 1 - right_share) * (lower_share if dy else 1 - lower_share)
        at_x, at_y = left + dx, top + dy
        inside = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
        place = at_y.clamp(0, height - 1).long() * width + at_x.clamp(0, width - 1).long()
        samples = flat.gather(2, place.flatten(1)[:, None].expand(-1, channels, -1))
        result += samples * (weight * inside).flatten(1)[:, None]
    return result.view(count, channels, size, size)


class ResidentCorpus:
    """All images of a corpus in a device's memory: gray ones in one tensor, coloured ones in another."""

    def __init__(self, corpus: Corpus, device: torch.device) -> None:
        blocks = [np.asarray(block) for block in corpus.blocks()]
        gray = np.concatenate([np.full(len(block), block.ndim == 3) for block in blocks])
        self.is_gray = gray
        self.row = np.where(gray, np.cumsum(gray) - 1, np.cumsum(~gray) - 1)
        self.gray = _filled([block[:, None] for block in blocks if block.ndim == 3], int(gray.sum()), corpus, device)
        colour = [block.transpose(0, 3, 1, 2) for block in blocks if block.ndim == 4]
        self.colour = _filled(colour, int((~gray).sum()), corpus, device)

    def fetch(self, positions: Positions) -> Tensor:
        """(B, 1, S, S), or (B, 3, S, S) as soon as one of them has colour."""
        device, gray = self.gray.device, self.is_gray[positions]
        if gray.all():
            return self.gray[_moved(self.row[positions], device)]
        parts = (
            self.gray[_moved(self.row[positions[gray]], device)],
            self.colour[_moved(self.row[positions[~gray]], device)],
        )
        return _woven(parts[0].expand(-1, 3, -1, -1), parts[1], ~gray)


def _filled(blocks: list[np.ndarray], count: int, corpus: Corpus, device: torch.device) -> Tensor:
    channels = blocks[0].shape[1] if blocks else 1
    whole = torch.empty(count, channels, corpus.size, corpus.size, dtype=torch.uint8, device=device)
    start = 0
    for block in blocks:
        whole[start : start + len(block)] = torch.from_numpy(np.array(block))
        start += len(block)
    return whole


def fits(corpus: Corpus, device: torch.device, drawn: int) -> bool:
    """Whether a corpus of which `drawn` images are to be drawn belongs into the device's memory."""
    if device.type != "cuda" or drawn < len(corpus):
        return False
    return corpus.nbytes <= SHARE * torch.cuda.mem_get_info(device)[0]


def _moved(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device: out of pinned memory on a GPU, so that nobody waits for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _placed_pixels(pixels: Pixels | MixedPixels, device: torch.device) -> Tensor:
    """(B, C, S, S) on the device; gray images among coloured ones cross as one channel."""
    if isinstance(pixels, MixedPixels):
        gray, colour = (_placed_pixels(part, device) for part in (pixels.gray, pixels.colour))
        return _woven(gray.expand(-1, 3, -1, -1), colour, pixels.coloured)
    return _moved(pixels.transpose(0, 3, 1, 2), device)


class DeviceLoader:
    """A Loader whose batches lie on a device before they are asked for."""

    def __init__(self, loader: Loader, device: torch.device, resident: ResidentCorpus | None) -> None:
        self.loader, self.device, self.resident = loader, device, resident

    def batches(self, start: int, stop: int) -> Iterator[tuple[DeviceBatch, float]]:
        """Batches of steps start..stop - 1, with the seconds waited: each is on its way while the one before computes."""
        make: Callable[[int], BatchDraws | Prepared] = self.loader.drawn if self.resident else self.loader.unchanged
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        ahead: tuple[DeviceBatch, float] | None = None
        for item, waited in self.loader.batches(start, stop, make):
            with torch.cuda.stream(stream):
                batch = self._placed(item)
            if ahead:
                yield self._arrived(ahead[0], stream), ahead[1]
            ahead = batch, waited
        if ahead:
            yield self._arrived(ahead[0], stream), ahead[1]

    def _placed(self, item: BatchDraws | Prepared) -> DeviceBatch:
        loader, drawn = self.loader, item if isinstance(item, BatchDraws) else item.drawn
        assert drawn is not None
        matrices = np.stack([affine(draw, loader.corpus.size, loader.model.image_size) for draw in drawn.draws])
        if isinstance(item, BatchDraws):
            assert self.resident is not None
            pixels = self.resident.fetch(drawn.positions)
        else:
            pixels = _placed_pixels(item.pixels, self.device)
        ids = tuple(loader.corpus.ids[position] for position in drawn.positions)
        noise, size = _moved(drawn.noise, self.device), loader.model.image_size
        return DeviceBatch(drawn.step, pixels, _moved(matrices.astype(np.float32), self.device), noise, ids, size)

    def _arrived(self, batch: DeviceBatch, stream: torch.cuda.Stream | None) -> DeviceBatch:
        """The batch, once its copies are done; its memory is not given to others while the step still reads it."""
        if stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(stream)
            for tensor in (batch.pixels, batch.matrices, batch.noise):
                tensor.record_stream(current)
        return batch
