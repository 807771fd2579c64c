"""A frame with an invented name burnt in, trained on like any other: has the round learned lettering by heart?

Where cleaning misses a name, it lies in a frame of the corpus, and a round may learn it. Nobody knows of that name, so that
the site plants one: SITE/canary holds one frame of speckle with a name that follows from the site's secret. After the round
the patches under the name are hidden and predicted by the base and by the update, and the same is done for other invented
names on the same speckle, which nobody trained on (Carlini et al. 2019, arXiv:1802.08232, call this exposure). Is the planted
name predicted better by far, real ones would be as well. It counts as none of the site's images and stays here.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from usfmae.client.site import Site
from usfmae.core.config import TrainSettings
from usfmae.core.corpus.shard import FOLDER, PackedImage, read_index, write_shard
from usfmae.core.mae.device import device_of
from usfmae.core.mae.device_batches import normalise
from usfmae.core.mae.model import MaskedAutoencoder
from usfmae.core.types import Pixels

OTHERS = 24  # names that nobody trained on
MOST_EXPOSURE = 4.0  # standard deviations by which the planted name may be predicted better than the others
FIRST = ("JANE", "ADAM", "MARIA", "OLAV", "NORA", "PIOTR", "LENA", "HUGO", "IDA", "ERIK")
LAST = ("DOE", "BERG", "ROSSI", "NOVAK", "LUND", "KELLER", "MARTIN", "SILVA", "MEYER", "COSTA")
HEIGHT = 0.12  # of the letters, as a share of the frame


@dataclass(frozen=True)
class TextCanary:
    """The frames with the planted name and the others, (1 + OTHERS, S, S) uint8, and where the names stand: (S, S)."""

    frames: Pixels
    lettered: NDArray[np.bool_]


def made(secret: bytes, size: int) -> TextCanary:
    """The same for the same secret."""
    random = np.random.default_rng(list(hmac.digest(secret, b"usfmae text canary", "sha256")))
    speckle = cv2.GaussianBlur(random.rayleigh(60, (size, size)).astype(np.float32), (0, 0), size / 100)
    first, last = random.permutation(FIRST), random.permutation(LAST)
    others = [f"{a} {b}" for a in last[1:] for b in first[1:]]  # no part of theirs is the planted name's
    names = [f"{last[0]} {first[0]}", *random.choice(others, OTHERS, replace=False)]
    strokes = np.stack([_written(name, size) for name in names])
    plain = np.clip(speckle, 0, 180).astype(np.uint8)
    return TextCanary(np.where(strokes, np.uint8(235), plain), np.any(strokes, axis=0))


def _written(name: str, size: int) -> NDArray[np.bool_]:
    """Where the strokes of a name are, along the upper edge."""
    drawn, height = np.zeros((size, size), np.uint8), HEIGHT * size
    scale = height / 22  # Hershey's letters are 22 pixels high
    width = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0]
    scale *= min(1.0, 0.94 * size / width)
    cv2.putText(drawn, name, (round(0.03 * size), round(1.4 * height)), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1)
    return drawn > 0


def planted(site: Site) -> tuple[Path, str]:
    """The folder of the frame that is trained on, as large as the corpus', made at the first call; its shard's checksum."""
    size = read_index(next((site.corpus / FOLDER).glob("*.json"))).size
    root = site.root / "canary" / str(size)
    if not list((root / FOLDER).glob("*.json")):
        frame = made(site.secret, size).frames[0]
        name = hmac.digest(site.secret, b"usfmae text canary's name", "sha256").hex()
        write_shard(root, "canary", [PackedImage(frame, name, "canary")])
    return root, read_index(next((root / FOLDER).glob("*.json"))).sha256


@torch.no_grad()
def exposure(canary: TextCanary, before: MaskedAutoencoder, after: MaskedAutoencoder, settings: TrainSettings) -> float:
    """By how many standard deviations the planted name gained more from the round than the others did."""
    size, side = before.settings.image_size, before.settings.patch_size
    grid, lettered = size // side, cv2.resize(canary.lettered.astype(np.uint8), (size, size)) > 0
    hidden = lettered.reshape(grid, side, grid, side).any((1, 3)).reshape(-1)
    noise = (
        np.random.default_rng(0).random(len(hidden)).astype(np.float32) + hidden
    )  # the name's patches are the last to stay
    pixels = np.stack([cv2.resize(frame, (size, size)) for frame in canary.frames])[..., None]
    images = normalise(pixels, settings, device_of(before))
    order = torch.from_numpy(noise).to(images.device)[None]

    # What is visible is the same under every name, so each model makes one prediction for all of them.
    _, old, mask = before(images[:1], order)
    _, new, _ = after(images[:1], order)
    under = (mask[0] > 0) & torch.from_numpy(hidden).to(images.device)
    moved = (new - old)[0, under].reshape(-1).double()

    # Which name the prediction moved towards, by the strokes in which that name differs from the mean of all.
    strokes = before.target(before.patchify(images))[:, under].flatten(1).double()
    strokes = torch.nn.functional.normalize(strokes - strokes.mean(0), dim=1)
    towards = (strokes @ moved).cpu().numpy()
    return float((towards[0] - towards[1:].mean()) / max(float(towards[1:].std()), 1e-12))
