"""Options of the model, the augmentations and the training loop."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from usfmae.core.config.base import Options, validated
from usfmae.core.errors import ConfigError

Beta = Annotated[float, Field(ge=0, lt=1)]
Spread = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ModelSettings(Options):
    """Architecture of the masked autoencoder; the defaults are USF-MAE's ViT-B/16 with decoder 8 x 512."""

    image_size: int = Field(224, ge=16, le=1024)
    """Side of the square input in pixels."""
    patch_size: int = Field(16, ge=2, le=64)
    """Side of a patch in pixels."""
    width: int = Field(768, ge=8)
    """Encoder embedding dimension."""
    depth: int = Field(12, ge=1)
    """Encoder blocks."""
    heads: int = Field(12, ge=1)
    """Encoder attention heads."""
    decoder_width: int = Field(512, ge=8)
    """Decoder embedding dimension."""
    decoder_depth: int = Field(8, ge=1)
    """Decoder blocks."""
    decoder_heads: int = Field(8, ge=1)
    """Decoder attention heads: 8 in the paper, 16 in the official notebook. Never inferred from shapes."""

    @model_validator(mode="after")
    def _divisible(self) -> ModelSettings:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.width % self.heads or self.decoder_width % self.decoder_heads:
            raise ValueError("width must be a multiple of heads, decoder_width of decoder_heads")
        if self.width % 4 or self.decoder_width % 4:
            raise ValueError("width and decoder_width must be multiples of 4 (sine-cosine positions in 2D)")
        return self


class AugmentSettings(Options):
    rotation: float = Field(90.0, ge=0, le=180)
    """Rotation drawn from 0 to this many degrees."""
    flips: bool = True
    """Horizontal and vertical flips, each with probability 0.5."""
    zoom_min: float = Field(0.5, gt=0)
    """Smallest zoom factor of the crop."""
    zoom_max: float = Field(2.0, gt=0)
    """Largest zoom factor of the crop."""
    resize: Literal["bilinear", "nearest"] = "bilinear"
    """How `prepare` brings images to the corpus size: bilinear (paper) or nearest (official notebook)."""
    two_sided: bool = False
    """Rotation drawn from minus to plus `rotation` degrees instead of from 0."""
    aspect: Literal["squash", "keep"] = "squash"
    """How `prepare` makes images square: squash (paper), or keep: the aspect stays, black is padded. Probes follow."""
    crop: Literal["zoom", "torchvision"] = "zoom"
    """zoom: true zoom with padding (paper). torchvision: RandomResizedCrop, zoom_* as shares of area (notebook)."""

    @model_validator(mode="after")
    def _ordered(self) -> AugmentSettings:
        if self.zoom_min > self.zoom_max:
            raise ValueError(f"zoom_min {self.zoom_min} is larger than zoom_max {self.zoom_max}")
        return self


class DpSettings(Options):
    noise: float = Field(0.0, ge=0)
    """Standard deviation of the noise in every step, in lengths of `clip`; 0: no differential privacy."""
    clip: float = Field(1.0, gt=0)
    """Length to which the gradient of each patient is cut."""
    blocks: int = Field(1, ge=1)
    """Last blocks of the encoder that are trained, with its last norm; all else stays as it came."""

    def trains(self, tensor: str, depth: int) -> bool:
        """Whether a tensor of an encoder of `depth` blocks is trained."""
        parts = tensor.split(".")
        last = parts[0] == "norm" or (parts[0] == "blocks" and int(parts[1]) >= depth - self.blocks)
        return last or not self.noise


class TrainSettings(Options):
    """What a person sets of the training loop."""

    preset: Literal["paper", "official-notebook", "best", "tiny"] = "paper"
    """Which preset these values started from; recorded in the checkpoint."""
    mask_ratio: float = Field(0.25, gt=0, lt=1)
    """Share of patches that are masked (paper: 0.25)."""
    norm_pix: bool = False
    """Normalise each target patch by its own mean and variance."""
    target: Literal["pixels", "latents", "mixture"] = "pixels"
    """What hidden patches are predicted as: pixels (paper), a frozen teacher's features, or both."""
    latent_share: float = Field(0.5, gt=0, lt=1)
    """Weight of the teacher's features in the loss of a mixture; the pixels have the rest."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw (paper), or muon for the matrices of the blocks and adamw for all other tensors."""
    batch_size: int = Field(64, ge=1)
    """Images per optimizer step, over all processes."""
    micro_batch: int | None = Field(None, ge=1)
    """Images per forward and backward pass; gradients are accumulated to batch_size. None: 12 on a CPU, 256 on a GPU."""
    lr: float = Field(2.5e-4, ge=0)
    """Peak learning rate. Paper: 1e-3 scaled by batch 64 / 256."""
    min_lr: float = Field(0.0, ge=0)
    """Learning rate at the end of the cosine."""
    warmup: float = Field(0.1, ge=0, le=1)
    """Share of all steps with linear warm-up."""
    cooldown: float = Field(0.2, ge=0, le=1)
    """Share of all steps in which the infinite schedule falls from the peak to its constant rate, by half a cosine."""
    constant: float = Field(0.5, ge=0, le=1)
    """The infinite schedule's constant rate, as a share of the peak."""
    schedule: Literal["cosine", "infinite"] = "cosine"
    """After warm-up: cosine to min_lr (one run of known length), or infinite: cooldown, constant, then a linear anneal."""
    anneal: float = Field(0.1, ge=0, le=1)
    """Share of all steps in which the infinite schedule falls to min_lr at the end."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW betas."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW weight decay, on every tensor."""
    clip: float = Field(1.0, gt=0)
    """Largest global gradient norm."""
    epochs: int = Field(100, ge=1)
    """Passes over the corpus."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; overrides epochs."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Autocast type; master weights are fp32 always. An x86 CPU without AMX computes fp32: there it is the faster."""
    compile: bool = False
    """torch.compile the model."""
    seed: int = 42
    """Seed of weights, masks, augmentation and order."""
    temperature: float = Field(1.0, ge=1)
    """Data sets are drawn in proportion to size ** (1 / temperature): 1 as they are, larger levels them out."""
    init_required: bool = False
    """Refuse to start from random weights (official notebook: ImageNet MAE weights)."""
    grouped: bool = True
    """Folds of cross-validation keep a patient or clip on one side (paper); false splits images (notebook)."""
    held_out: float = Field(0.1, ge=0, lt=1)
    """Share of groups (patients, studies) held out to measure the masked loss."""
    held_out_images: int = Field(512, ge=1)
    """At most this many held-out images are measured each time."""
    keep: int = Field(3, ge=1)
    """Checkpoints kept."""
    checkpoint_minutes: float = Field(10.0, gt=0)
    """Minutes between checkpoints, written beside the training; by the clock, so that a fast GPU is not held up."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints, in place of minutes."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means for normalisation (ImageNet, as in the paper)."""
    std: tuple[Spread, Spread, Spread] = (0.229, 0.224, 0.225)
    """Channel standard deviations for normalisation."""
    augment: AugmentSettings = AugmentSettings()
    """Augmentations."""
    dp: DpSettings = DpSettings()
    """Differential privacy for each patient, for federated rounds; batch_size is the expected number of patients a step."""


class TrainRecipe(TrainSettings):
    """What a training computes: a person's settings, and what a request of a federation adds. Nobody sets the latter.

    It travels in every request and stands in every checkpoint. Single-site training has the defaults of what is added.
    """

    origin: int = Field(0, ge=0)
    """Global step at which the schedule begins: a new campaign warms up again from here."""
    proximal: float = Field(0.0, ge=0)
    """FedProx: strength of the pull towards the weights a round began with."""
    teacher: str = ""
    """Hash of the frozen encoder whose features a federation's sites predict: the one its campaign began with."""
    replay: float = Field(0.0, ge=0, le=0.5)
    """Share of replayed public images in a site's training."""
    replay_corpus: str = ""
    """Fingerprint of the public corpus that is replayed; a site without it declines."""

    @classmethod
    def of(cls, settings: TrainSettings, **added: Any) -> Self:
        """The recipe of these settings, with `added` values. Raises ConfigError where one is out of its range."""
        return validated(cls, {**settings.model_dump(), **added}, "recipe")

    def settings(self) -> TrainSettings:
        """The part of it that a person sets."""
        return TrainSettings.model_validate(self.model_dump(include=set(TrainSettings.model_fields)))


def check_patches(model: ModelSettings, train: TrainSettings) -> None:
    """ValueError where so many patches are hidden, or so few, that nothing is left to see or to predict."""
    patches = (model.image_size // model.patch_size) ** 2
    visible = int(patches * (1 - train.mask_ratio))
    if not 0 < visible < patches:
        left = "visible" if not visible else "hidden"
        raise ValueError(f"train.mask_ratio {train.mask_ratio:g} of {patches} patches leaves none {left}")


LONGEST = 64 * 1024  # bytes; ours has about 1,500
MOST_BRACKETS = 32  # that open, in texts too; ours has 7, none inside a text


@dataclass(frozen=True)
class Recipe:
    """What a campaign computes: the architecture and how it is trained."""

    model: ModelSettings
    train: TrainRecipe


def read_recipe(text: str) -> Recipe:
    """The settings in `{"model": ..., "train": ...}`. ConfigError where it is too long, too deep or not that."""
    try:
        _check_limits(text)
        values = json.loads(text, parse_constant=_no_number)
        recipe = Recipe(ModelSettings.model_validate(values["model"]), TrainRecipe.model_validate(values["train"]))
        check_patches(recipe.model, recipe.train)
        return recipe
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise ConfigError("recipe", f"unreadable: {reason:.200}", "update usfmae on the older side") from None


def _check_limits(text: str) -> None:
    """ValueError where parsing `text` could cost more than a recipe is worth; looks at brackets alone."""
    if len(text) > LONGEST:
        raise ValueError(f"{len(text)} characters, at most {LONGEST}")
    opened = text.count("[") + text.count("{")
    if opened > MOST_BRACKETS:  # nothing nests deeper than brackets open
        raise ValueError(f"{opened} brackets, at most {MOST_BRACKETS}")


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")
