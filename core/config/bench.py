"""Options of the benchmarks: probes, fine-tuning, intervals, the leak audit."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from usfmae.core.config.base import Options

# What each recipe sets where the person says nothing. `paper` states a grid and augmentations, the rest is a reading.
# `good` is ours: docs/results/benchmarks.md says on which validation parts it was chosen.
RECIPES: dict[str, dict[str, Any]] = {
    "good": {},
    "paper": {
        "lrs": (3e-4, 1e-3),
        "head_lr": None,
        "weight_decays": (0.01, 0.001),
        "batch_sizes": (32, 64),
        "epochs": 50,
        "patience": 10,
        "norm": "none",
        "rotation": 90.0,
        "two_sided": False,
        "zoom_min": 0.5,
        "zoom_max": 2.0,
    },
}


class FinetuneSettings(Options):
    recipe: Literal["good", "paper"] = "good"
    """Where the other values come from: good (ours), or paper (its grid and augmentations)."""
    lrs: tuple[float, ...] = Field((3e-5, 1e-4), min_length=1)
    """Learning rates of the encoder tried; the validation part chooses (paper: 3e-4, 1e-3)."""
    head_lr: float | None = Field(1e-3, gt=0)
    """Learning rate of the head; none: the encoder's (paper)."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Each block's learning rate is this share of the one above it; 1: all the same. 0.75 is usual for a ViT-B."""
    weight_decays: tuple[float, ...] = Field((0.01,), min_length=1)
    """Weight decays tried (paper: 0.01, 0.001)."""
    batch_sizes: tuple[int, ...] = Field((16,), min_length=1)
    """Batch sizes tried (paper: 32, 64)."""
    epochs: int = Field(40, ge=1)
    """Most passes over the training part."""
    patience: int = Field(40, ge=1)
    """Passes without a better validation score after which training stops."""
    warmup: float = Field(0.1, ge=0, le=1)
    """Share of all steps with linear warm-up; cosine to zero after that."""
    norm: Literal["none", "batch"] = "batch"
    """Features are normalised over the batch before the head (He et al. 2022, linear probing), or not (paper)."""
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1)
    """Seeds of head, order and augmentation with which the chosen setting is trained."""
    rotation: float = Field(10.0, ge=0, le=180)
    """Largest rotation in degrees (paper: 90)."""
    two_sided: bool = True
    """Rotation to both sides; false: from 0 upwards (paper)."""
    flips: bool = True
    """Horizontal and vertical flips."""
    zoom_min: float = Field(0.8, gt=0)
    """Smallest zoom of the crop (paper: 0.5)."""
    zoom_max: float = Field(1.25, gt=0)
    """Largest zoom of the crop (paper: 2.0)."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Autocast type; master weights are fp32."""

    @model_validator(mode="before")
    @classmethod
    def _of_the_recipe(cls, values: Any) -> Any:
        return {**RECIPES.get(values.get("recipe", "good"), {}), **values} if isinstance(values, dict) else values


class SegmentSettings(Options):
    finetune: bool = False
    """Train the encoder too; false: it is frozen and run once."""
    epochs: int = Field(30, ge=1)
    """Passes over the training part; the validation part's Dice chooses among them."""
    batch_size: int = Field(16, ge=2)
    """Images per step."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate of the head."""
    encoder_lr: float = Field(3e-5, gt=0)
    """Learning rate of the encoder where it is trained."""
    seed: int = 0
    """Seed of the head and of the order."""


class BenchSettings(Options):
    image_size: int = Field(224, ge=32)
    """Side of the square that benchmark images are resized to."""
    aspect: Literal["auto", "keep", "squash"] = "auto"
    """Images become square by padding (keep) or by squashing (the paper); auto: as the encoder's own images did."""
    pooling: Literal["mean", "cls"] = "mean"
    """What stands for an image: the mean of the patch tokens, or the class token."""
    neighbours: int = Field(20, ge=1)
    """Neighbours of the kNN probe; fewer where the training part is smaller."""
    regularisation: tuple[float, ...] = Field((0.01, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5), min_length=1)
    """Values of C times the number of features tried for logistic regression; grouped folds of the training images choose."""
    fractions: tuple[float, ...] = (0.01, 0.05, 0.1, 0.25, 1.0)
    """Shares of the labelled training patients for the label-efficiency curve."""
    repeats: int = Field(5, ge=1)
    """Draws of training patients for each share below 1."""
    resamples: int = Field(1000, ge=100)
    """Bootstrap resamples of patients behind every 95 % interval."""
    seed: int = 42
    """Seed of splits, draws and resamples."""
    leaks: Literal["refuse", "drop"] = "refuse"
    """An image in both corpus and test set: refuse to train, or leave it out of training."""
    leak_bits: int = Field(32, ge=0, le=64)
    """Images whose 256-bit perceptual hashes differ in at most this many bits count as one image."""
    accept_layouts: tuple[str, ...] = ()
    """Data sets whose unverified layout a person has looked at."""
    finetune: FinetuneSettings = FinetuneSettings()
    """Fine-tuning."""
    segment: SegmentSettings = SegmentSettings()
    """Segmentation."""
