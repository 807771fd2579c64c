"""A finished update is tried before it may leave: what could be read out of it, measured on this site's own images.

The closed form of gradient inversion needs no guess: the change of the patch projection of one step is made of the
patches that were seen, so that it spans them. Does it span a patch of a drawn picture far better than any patch of a
held-out one, the update is held back for a person, with the patch and what was read of it side by side. Honest updates
are made of thousands of patches and steps of AdamW, and span both alike. Nothing of this leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from usfmae.core.bench import leak_audit
from usfmae.core.bench.leak_audit import Scores, Span
from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.corpus.loader import Loader
from usfmae.core.files import write_atomic
from usfmae.core.mae.device_batches import normalise

PROJECTION = "patch_embed.proj.weight"
IMAGES = 32  # of drawn and of held-out pictures that are tried
MOST_RANK_ONE = 0.9  # share along one direction; honest updates that were measured stayed below 0.65
MOST_ADVANTAGE = 10.0  # dB by which a drawn picture's patch may be spanned better than a held-out one's


@dataclass(frozen=True)
class Round:
    """Where an update's pictures come from: its steps draw them again, as they were augmented."""

    corpus: Corpus
    drawn: Positions  # what was trained on
    others: Positions  # held-out images
    steps: tuple[int, int]  # global steps, from and to
    model: ModelSettings
    settings: TrainSettings


def probe(change: NDArray[np.float32], seen: Round, picture: Path) -> dict[str, Any]:
    """Figures of an update by its patch projection (D, 3, P, P), and why it is held; `picture` is written then."""
    others = seen.others if len(seen.others) else seen.drawn
    first, last = seen.steps
    wanted = np.unique(np.linspace(first, last - 1, max(1, -(-IMAGES // seen.settings.batch_size)), dtype=int))
    drawn = patches(seen, seen.drawn, wanted.tolist())
    span = leak_audit.span(_flat(change), drawn, patches(seen, others, [first, last + 7]))
    why = flagged(span)
    if why:
        side = seen.model.patch_size
        pair = [_gray(values, side, seen.settings) for values in (drawn[span.patch], span.spanned)]
        done, png = cv2.imencode(".png", np.hstack(pair))
        assert done, "two patches are a picture"
        write_atomic(picture, png.tobytes())
    return {**span.figures(), "held": why}


def flagged(span: Span) -> str:
    """Why an update with this span should not leave by itself; "" where nothing was found."""
    if span.rank_one > MOST_RANK_ONE:
        return f"{span.rank_one:.0%} of the patch projection's change is one direction, at most {MOST_RANK_ONE:.0%}"
    if span.advantage > MOST_ADVANTAGE:
        return f"a drawn picture's patch is read {span.advantage:.1f} dB better than any other's, at most {MOST_ADVANTAGE:g}"
    return ""


def patches(seen: Round, positions: Positions, steps: list[int]) -> Scores:
    """Normalised patches (N, 3 P^2) of the images that these steps draw from `positions`, in a convolution's order."""
    loader = Loader(seen.corpus, positions, seen.model, seen.settings)
    pixels = np.concatenate([loader.prepare(step).pixels for step in steps])[:IMAGES]
    images = normalise(pixels, seen.settings, torch.device("cpu"))
    side = seen.model.patch_size
    cut = images.unfold(2, side, side).unfold(3, side, side)  # (B, 3, rows, columns, P, P)
    return cut.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * side * side).double().numpy()


def _flat(change: NDArray[np.float32]) -> Scores:
    return change.reshape(len(change), -1).astype(np.float64)


def _gray(values: Scores, side: int, settings: TrainSettings) -> NDArray[np.uint8]:
    """The mean of a patch's three channels, enlarged for a person."""
    mean, std = float(np.mean(settings.mean)), float(np.mean(settings.std))
    gray = np.clip((values.reshape(3, side, side).mean(0) * std + mean) * 255, 0, 255).astype(np.uint8)
    return np.asarray(cv2.resize(gray, (128, 128), interpolation=cv2.INTER_NEAREST), np.uint8)
