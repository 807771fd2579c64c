"""A site's floor: what a request must keep to before it is trained, and what its update really draws on.

A coordinator that chooses one image, one visible patch and a step that passes the plain gradient on reads that patch
from the update exactly. Every bound here takes one of those means away; the counts of images and patients are taken
where they are drawn, so that no recipe can promise one thing and do another.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usfmae.core.config.privacy import PrivacySettings
from usfmae.core.config.train import ModelSettings, Recipe, TrainRecipe
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.errors import PolicyError
from usfmae.core.federated.messages import TrainRequest
from usfmae.core.mae.lr_schedule import learning_rate

LATEST_ROUND = 10**6  # no campaign comes near
LATEST_STEP = 10**9
# Normalisation that ultrasound in [0, 1] can need. Outside it inputs, and so gradients, vanish or explode, and AdamW
# passes the plain gradient on.
MEANS, DEVIATIONS = (0.0, 1.0), (0.05, 1.0)
LARGEST_BETA = 0.9999
LARGEST_PROXIMAL = 100.0
# Augmentation that shrinks a picture puts all of it into a few patches, beside padding that everybody knows.
ZOOMS = {"zoom": (0.5, 4.0), "torchvision": (0.05, 4.0)}  # factors; shares of the area
WORKING_RATE = 0.1  # of a round's largest learning rate: a step below it changes next to nothing
FEWEST_MEASURED = 16  # images whose mean loss leaves: that of one image would be a figure about one patient


@dataclass(frozen=True)
class Breach:
    """One figure of a request that a site's floor does not allow."""

    figure: str
    value: object
    bound: str
    setting: str = ""  # key of site.yaml that holds the bound; "" where it is fixed

    def __str__(self) -> str:
        return f"{self.figure} is {_shown(self.value)}, this site allows {self.bound}"


def breaches(request: TrainRequest, recipe: Recipe, floor: PrivacySettings, largest_model: float) -> list[Breach]:
    """Every figure of a request that is outside the floor. `largest_model`: bytes of fp32 weights."""
    all_breaches = [
        *_numbers(recipe.train),
        *_request_breaches(request, floor),
        *_model_breaches(recipe.model, floor, largest_model),
        *_train_breaches(recipe, floor),
    ]
    if floor.min_steps <= request.steps <= floor.max_steps:
        working = int(working_steps(request, recipe.train).sum())
        wanted = floor.min_steps / 2  # an honest first round warms up
        all_breaches += _at_least("steps that change the weights", working, wanted, "privacy.min_steps")
        own_draws = working * recipe.train.batch_size * (1 - recipe.train.replay)  # the others are public images
        all_breaches += _at_least("own images in working steps", own_draws, floor.min_images, "privacy.min_images")
    return all_breaches


def working_steps(request: TrainRequest, recipe: TrainRecipe) -> NDArray[np.bool_]:
    """Which of a round's steps change the weights: (steps,). Where the rate is zero throughout, all count alike.

    A schedule that ends after its first step would leave the images of one batch in an update of many steps.
    """
    rates = learning_rates(request, recipe)
    return np.asarray(rates >= WORKING_RATE * rates.max(initial=0.0))


def learning_rates(request: TrainRequest, recipe: TrainRecipe) -> NDArray[np.float64]:
    """The rate of each step of a round: (steps,)."""
    first = request.global_step
    end = recipe.steps or first + request.steps
    return np.array([learning_rate(first + step, end, recipe) for step in range(request.steps)])


def check(request: TrainRequest, recipe: Recipe, floor: PrivacySettings, largest_model: float) -> None:
    """PolicyError that names every figure outside the floor, and its bound."""
    all_breaches = breaches(request, recipe, floor, largest_model)
    if all_breaches:
        keys = ", ".join(sorted({breach.setting for breach in all_breaches if breach.setting}))
        do = f"this site decides on {keys}" if keys else "refused"
        raise PolicyError("request", "; ".join(map(str, all_breaches)), do)


def parameters(model: ModelSettings) -> int:
    """Weights of the masked autoencoder, encoder and decoder, the fixed position tables included."""
    tokens = (model.image_size // model.patch_size) ** 2 + 1
    pixels = 3 * model.patch_size**2
    encoder = model.width * (pixels + 1 + tokens + 1 + 2) + model.depth * _block(model.width)
    narrow = model.decoder_width
    decoder = narrow * (model.width + 1 + tokens + 1 + 2) + model.decoder_depth * _block(narrow) + pixels * (narrow + 1)
    return encoder + decoder


def _block(width: int) -> int:
    """Weights of one transformer block: two norms, attention, and an MLP four times as wide."""
    return 12 * width**2 + 13 * width


def _request_breaches(request: TrainRequest, floor: PrivacySettings) -> Iterator[Breach]:
    yield from _at_least("steps", request.steps, floor.min_steps, "privacy.min_steps")
    yield from _at_most("steps", request.steps, floor.max_steps, "privacy.max_steps")
    yield from _at_most("round", request.round, LATEST_ROUND)
    yield from _at_most("global_step", request.global_step, LATEST_STEP)
    sealed = request.custodian and request.encoding.startswith("shared:")  # the site has named this custodian itself
    if request.encoding not in floor.encodings and not sealed:
        yield Breach("encoding", request.encoding, ", ".join(floor.encodings), "privacy.encodings")


def _model_breaches(model: ModelSettings, floor: PrivacySettings, largest_model: float) -> Iterator[Breach]:
    tokens = (model.image_size // model.patch_size) ** 2
    yield from _at_most("patches an image", tokens, floor.max_tokens, "privacy.max_tokens")
    yield from _at_most("bytes of the model", 4 * parameters(model), int(largest_model), "max_model_gb")


def _train_breaches(recipe: Recipe, floor: PrivacySettings) -> Iterator[Breach]:
    train = recipe.train
    yield from _at_least("batch_size", train.batch_size, floor.min_batch, "privacy.min_batch")
    yield from _patch_breaches(recipe, floor)
    yield from _at_most("lr", max(train.lr, train.min_lr), floor.max_lr, "privacy.max_lr")
    if floor.epsilon and not train.dp.noise:
        yield Breach("dp.noise", train.dp.noise, "differential privacy alone", "privacy.epsilon")
    yield from _at_least("clip", train.clip, floor.min_clip, "privacy.min_clip")
    yield from _at_most("weight_decay", train.weight_decay, floor.max_weight_decay, "privacy.max_weight_decay")
    if floor.augmentation and _is_off(train):
        yield Breach("augmentation", "off", "it on", "privacy.augmentation")
    yield from _at_most("proximal", train.proximal, LARGEST_PROXIMAL)
    least, most = ZOOMS[train.augment.crop]
    yield from _at_least("augment.zoom_min", train.augment.zoom_min, least)
    yield from _at_most("augment.zoom_max", train.augment.zoom_max, most)
    for name, values, (lowest, highest) in (
        ("mean", train.mean, MEANS),
        ("std", train.std, DEVIATIONS),
        ("betas", train.betas, (0.0, LARGEST_BETA)),
    ):
        if not all(lowest <= value <= highest for value in values):
            yield Breach(name, list(values), f"{lowest:g} to {highest:g}")


def _patch_breaches(recipe: Recipe, floor: PrivacySettings) -> Iterator[Breach]:
    """Visible and masked patches, counted as the model does."""
    patches = (recipe.model.image_size // recipe.model.patch_size) ** 2
    visible = int(patches * (1 - recipe.train.mask_ratio))
    yield from _at_least("visible share", visible / patches, floor.min_visible, "privacy.min_visible")
    yield from _at_least("visible patches", visible, floor.min_visible_patches, "privacy.min_visible_patches")
    yield from _at_least("masked share", (patches - visible) / patches, floor.min_masked, "privacy.min_masked")


def _is_off(train: TrainRecipe) -> bool:
    """Nothing of the augmentation changes where a pixel lies, beyond the four flips."""
    settings = train.augment
    return settings.rotation < 1 and settings.zoom_max - settings.zoom_min < 0.01


def _numbers(train: TrainRecipe) -> Iterator[Breach]:
    """Figures that are infinite or NaN: they would pass any comparison in one direction."""
    values = {**train.model_dump(exclude={"augment", "dp"}), **train.augment.model_dump(), **train.dp.model_dump()}
    for name, value in values.items():
        parts = value if isinstance(value, tuple) else (value,)
        if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
            yield Breach(name, value, "finite numbers")


def _at_least(figure: str, value: float, bound: float, setting: str = "") -> Iterator[Breach]:
    if value < bound:
        yield Breach(figure, value, f"at least {bound:g}", setting)


def _at_most(figure: str, value: float, bound: float, setting: str = "") -> Iterator[Breach]:
    if value > bound:
        yield Breach(figure, value, f"at most {bound:g}", setting)


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value}"[:60]


@dataclass(frozen=True)
class Drawn:
    """What an update really draws on: images of the site itself, replayed public ones left out."""

    images: int  # different ones
    patients: int  # different groups of the corpus
    largest_share: float  # of one group in all draws of own images

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def drawn(draws: Positions, groups: Sequence[str], own: Positions) -> Drawn:
    """Count the own images among `draws` (N,), positions with repeats; `groups` by position, `own` positions."""
    images, times = np.unique(draws, return_counts=True)
    mine = np.isin(images, own)
    by_group: dict[str, int] = {}
    for image, count in zip(images[mine].tolist(), times[mine].tolist(), strict=True):
        by_group[groups[image]] = by_group.get(groups[image], 0) + count
    total = sum(by_group.values())
    return Drawn(int(mine.sum()), len(by_group), max(by_group.values(), default=0) / max(total, 1))


def same_pixels(corpus: Corpus, positions: Positions) -> Positions:
    """For each of `positions` (N,), the first of them that holds the very same pixels.

    A picture that was sent again under another name, study or patient is one image, of one patient.
    """
    first: dict[bytes, int] = {}
    unique, where = np.unique(positions, return_inverse=True)
    for place, position in enumerate(unique.tolist()):
        (pixels,) = corpus.images([position])
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=16, key=str(pixels.shape).encode()).digest()
        unique[place] = first.setdefault(digest, position)
    return unique[where]


def check_drawn(counts: Drawn, floor: PrivacySettings) -> None:
    """PolicyError where an update would draw on fewer images or patients than the floor, or too much on one."""
    all_breaches = [
        *_at_least("images drawn", counts.images, floor.min_images, "privacy.min_images"),
        *_at_least("patients drawn", counts.patients, floor.min_patients, "privacy.min_patients"),
        *_at_most(
            "largest share of one patient", counts.largest_share, floor.max_patient_share, "privacy.max_patient_share"
        ),
    ]
    if all_breaches:
        keys = ", ".join(breach.setting for breach in all_breaches)
        raise PolicyError(
            "update", "; ".join(map(str, all_breaches)), f"take in more scans, or lower {keys} in site.yaml"
        )
