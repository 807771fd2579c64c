"""A finished update is tried before it may leave: what could be read out of it, measured on this site's own images.

The closed form of gradient inversion needs no guess: the change of the patch projection of one step is made of the
patches that were seen, so that it spans them. Does it span a patch of a drawn picture far better than any patch of a
held-out one, the update is held back for a person, with the patch and what was read of it side by side. Or is it made of
so few patches that nothing lies outside a few directions? Honest updates are made of thousands of patches and steps of
AdamW: they span both alike, and lie in every direction. Of a change that is nearly one direction, as an encoder makes that
has learned little, this cannot be told: it is held as well.

Then membership: does the loss fall so much more on drawn patients than on held-out ones that these are told apart? And
lettering: has the round learned an invented name by heart (text_canary.py)? Nothing of this leaves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from usfmae.client.rounds import text_canary
from usfmae.core.bench import leak_audit
from usfmae.core.bench.leak_audit import Scores, Span
from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.corpus.loader import Loader
from usfmae.core.federated.local_round import Tensors
from usfmae.core.files import write_atomic
from usfmae.core.mae.device_batches import normalise
from usfmae.core.mae.model import MaskedAutoencoder, load_tensors

PROJECTION = "patch_embed.proj.weight"
IMAGES = 32  # of drawn and of held-out pictures that are tried
LEAST_BEYOND = 1e-9  # share outside FEW directions; honest rounds measured 3e-6 and more, attacks 2e-11 at most
MOST_RANK_ONE = 0.9  # share along one direction; more only in honest rounds of encoders that have learned little
ROUNDING = 2.0**-23 / 12**0.5  # standard deviation of what fp32 leaves out of a weight in a step, in weights
MOST_MEMBERSHIP = 0.6  # lower end of the interval of the area under the curve, over patients
TRIED = 0.045  # images of each side that are tried, in images that the round drew: a tenth of its time with the rest
FEWEST_TRIED, MOST_TRIED = 16, 256
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


@dataclass(frozen=True)
class Change:
    """What a round's gradients added to the patch projection (D, 3, P, P), and the share of it that may be rounding."""

    values: NDArray[np.float64]
    rounding: float = 0.0


def gradients(before: NDArray[np.float32], after: NDArray[np.float32], decay: NDArray[np.float64]) -> Change:
    """The change without weight decay, which shows no picture and hides what does; `decay` is that of each step: (T,)."""
    values = after.astype(np.float64) - before * np.prod(1 - decay)
    lost = len(decay) * float(((ROUNDING * before) ** 2).sum())
    return Change(values, lost / max(float((values**2).sum()), 1e-300))


def probe(change: Change, seen: Round, picture: Path) -> dict[str, Any]:
    """Figures of an update by the change of its patch projection, and why it is held; `picture` is written then."""
    others = seen.others if len(seen.others) else seen.drawn
    first, last = seen.steps
    wanted = np.unique(np.linspace(first, last - 1, max(1, -(-IMAGES // seen.settings.batch_size)), dtype=int))
    drawn = patches(seen, seen.drawn, wanted.tolist())
    held_out = patches(seen, others, [first, last + 7])
    flat = change.values.reshape(len(change.values), -1)
    span = leak_audit.span(flat, drawn, held_out)
    # The mean brightness that all patches share hides what else a change spans.
    detail = leak_audit.span(*(_without_brightness(values) for values in (flat, drawn, held_out)))
    if detail.advantage > span.advantage:
        span = replace(span, advantage=detail.advantage, patch=detail.patch, spanned=detail.spanned)
    why = flagged(span, change.rounding)
    if why:
        side = seen.model.patch_size
        pair = np.hstack([_gray(values, side, seen.settings) for values in (drawn[span.patch], span.spanned)])
        # Dark tissue too is to be compared: both halves are stretched by the same factor.
        done, png = cv2.imencode(".png", cv2.convertScaleAbs(pair, alpha=255 / max(1, int(pair.max()))))
        assert done, "two patches are a picture"
        write_atomic(picture, png.tobytes())
    return {**span.figures(), "held": why, "picture": bool(why)}


def flagged(span: Span, rounding: float = 0.0) -> str:
    """Why an update with this span should not leave by itself; "" where nothing was found."""
    if span.beyond_few < max(LEAST_BEYOND, 4 * rounding):
        return f"it is made of {leak_audit.FEW} patches or fewer: nothing of the patch projection's change lies outside them"
    if span.rank_one > MOST_RANK_ONE:
        return f"{span.rank_one:.0%} of the patch projection's change is one direction, at most {MOST_RANK_ONE:.0%}"
    if span.advantage > MOST_ADVANTAGE:
        return f"a drawn picture's patch is read {span.advantage:.1f} dB better than any other's, at most {MOST_ADVANTAGE:g}"
    return ""


@dataclass(frozen=True)
class Networks:
    """The autoencoder before the round and after it, both with this site's decoder as the round left it."""

    before: MaskedAutoencoder
    after: MaskedAutoencoder


def networks_of(encoders: tuple[Tensors, Tensors], decoder: Tensors, seen: Round) -> Networks:
    """From the encoders before and after, and the decoder."""
    built = []
    for encoder in encoders:
        network = MaskedAutoencoder(seen.model, seen.settings.mask_ratio, seen.settings.norm_pix)
        tensors = {name: torch.from_numpy(np.array(values)) for name, values in [*encoder.items(), *decoder.items()]}
        load_tensors(network, tensors, "this site's model")
        built.append(network.eval())
    return Networks(*built)


def told_apart(networks: Networks, seen: Round) -> dict[str, Any]:
    """Area under the curve of drawn patients against held-out ones, by the fall of the loss; and why it is held.

    Empty where too few images are held out.
    """
    first, last = seen.steps
    drawn = int(TRIED * (last - first) * seen.settings.batch_size)
    most = min(max(drawn, FEWEST_TRIED), MOST_TRIED)
    sides = [_some(side, most) for side in (np.unique(seen.drawn), seen.others)]
    if min(len(side) for side in sides) < FEWEST_TRIED:
        return {}
    falls = []
    for side in sides:
        before, after = (
            leak_audit.image_losses(network, seen.corpus, side, seen.settings, views=1)
            for network in (networks.before, networks.after)
        )
        falls.append(leak_audit.by_patient(before - after, [seen.corpus.groups[p] for p in side]))
    area = leak_audit.separation(falls[0], falls[1])
    why = f"drawn patients are told from held-out ones: {area.auc:.2f} ({area.low:.2f}-{area.high:.2f})"
    held = f"{why}, at most {MOST_MEMBERSHIP:g}" if area.low > MOST_MEMBERSHIP else ""
    return {"membership": [round(value, 3) for value in (area.auc, area.low, area.high)], "held": held}


def _some(positions: Positions, most: int) -> Positions:
    """At most so many, spread evenly."""
    spread: Positions = positions[np.linspace(0, len(positions) - 1, min(len(positions), most)).astype(int)]
    return spread


def lettering(networks: Networks, secret: bytes, settings: TrainSettings) -> dict[str, Any]:
    """How much better than others the planted name is predicted, in standard deviations; and why it is held."""
    canary = text_canary.made(secret, networks.before.settings.image_size)
    exposure = text_canary.exposure(canary, networks.before, networks.after, settings)
    why = f"an invented name burnt into one frame was learned by heart: {exposure:.1f} standard deviations"
    held = f"{why}, at most {text_canary.MOST_EXPOSURE:g}" if exposure > text_canary.MOST_EXPOSURE else ""
    return {"lettering": round(exposure, 2), "held": held}


def joined(figures: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The figures of several tests, and every reason to hold the update."""
    parts = list(figures)
    why = "; ".join(part["held"] for part in parts if part.get("held"))
    return {**{name: value for part in parts for name, value in part.items()}, "held": why}


def patches(seen: Round, positions: Positions, steps: list[int]) -> Scores:
    """Normalised patches (N, 3 P^2) of the images that these steps draw from `positions`, in a convolution's order."""
    loader = Loader(seen.corpus, positions, seen.model, seen.settings)
    cpu = torch.device("cpu")
    images = torch.cat([normalise(loader.prepare(step).pixels, seen.settings, cpu) for step in steps])[:IMAGES]
    side = seen.model.patch_size
    cut = images.unfold(2, side, side).unfold(3, side, side)  # (B, 3, rows, columns, P, P)
    return cut.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * side * side).double().numpy()


def _without_brightness(patches: Scores) -> Scores:
    """Patches (N, 3 P^2) without the mean of each channel."""
    channels = patches.reshape(len(patches), 3, -1)
    return np.asarray((channels - channels.mean(axis=2, keepdims=True)).reshape(patches.shape))


def _gray(values: Scores, side: int, settings: TrainSettings) -> NDArray[np.uint8]:
    """The mean of a patch's three channels, enlarged for a person."""
    mean, std = float(np.mean(settings.mean)), float(np.mean(settings.std))
    gray = np.clip((values.reshape(3, side, side).mean(0) * std + mean) * 255, 0, 255).astype(np.uint8)
    return np.asarray(cv2.resize(gray, (128, 128), interpolation=cv2.INTER_NEAREST), np.uint8)
