"""Each preset row by row: what the paper says, what the authors' notebook does, what fits two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from usfmae.core.errors import ConfigError, UsageError
from usfmae.core.mae.presets import TRIAL, configure, preset

TABLE: dict[str, tuple[Any, Any]] = {  # key: (paper, official-notebook)
    "init_required": (False, True),
    "mask_ratio": (0.25, 0.75),
    "norm_pix": (False, False),
    "lr": (1e-3 * 64 / 256, 1e-3 * 128 / 256),
    "min_lr": (0.0, 1e-5),
    "warmup": (0.1, 0.1),
    "betas": ((0.9, 0.999), (0.9, 0.999)),
    "weight_decay": (0.01, 0.01),
    "clip": (1.0, 1.0),
    "precision": ("bf16", "bf16"),
    "batch_size": (64, 64),
    "epochs": (100, 100),
    "steps": (None, None),
    "seed": (42, 42),
    "grouped": (True, False),
    "mean": ((0.485, 0.456, 0.406), (0.485, 0.456, 0.406)),
    "std": ((0.229, 0.224, 0.225), (0.229, 0.224, 0.225)),
    "augment.crop": ("zoom", "torchvision"),
    "augment.resize": ("bilinear", "nearest"),
    "augment.rotation": (90.0, 90.0),
    "augment.flips": (True, True),
    "augment.zoom_min": (0.5, 0.5),
    "augment.zoom_max": (2.0, 2.0),
}
MODEL = {"image_size": 224, "patch_size": 16, "width": 768, "depth": 12, "heads": 12, "decoder_width": 512}


def value(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = getattr(settings, part)
    return settings


@pytest.mark.parametrize("key", TABLE)
@pytest.mark.parametrize("column, name", [(0, "paper"), (1, "official-notebook")])
def test_training_follows_the_table(key: str, column: int, name: str) -> None:
    assert value(preset(name)[1], key) == pytest.approx(TABLE[key][column])


def test_best_differs_from_the_paper_in_what_the_comparison_chose_and_nothing_else() -> None:
    (model, best), (papers, paper) = preset("best"), preset("paper")
    changed = {n: v for n, v in best.model_dump().items() if v != paper.model_dump()[n]}
    assert model == papers
    assert changed == {
        "preset": "best", "mask_ratio": 0.75, "norm_pix": True, "optimizer": "muon", "lr": 1e-3, "batch_size": 32,
    }  # fmt: skip


@pytest.mark.parametrize("name, heads, visible", [("paper", 8, 147), ("official-notebook", 16, 49)])
def test_the_model_is_vit_b_with_the_decoder_of_each_source(name: str, heads: int, visible: int) -> None:
    model, train = preset(name)
    assert {key: getattr(model, key) for key in MODEL} == MODEL
    assert (model.decoder_depth, model.decoder_heads) == (8, heads)
    assert int(196 * (1 - train.mask_ratio)) == visible


def test_tiny_is_small_enough_for_two_cores() -> None:
    model, train = preset("tiny")
    assert (model.width, model.depth, model.decoder_width, model.decoder_depth) == (192, 4, 128, 2)
    assert (train.steps, train.mask_ratio) == (300, 0.25)


def test_later_sources_win_key_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train: {preset: official-notebook, lr: 0.001, augment: {rotation: 10}}\n")
    monkeypatch.setenv("USFMAE_TRAIN__CLIP", "2")
    settings = configure(None, file, ["train.clip=3"])
    assert settings.train.mask_ratio == 0.75  # from the preset the file names
    assert (settings.train.lr, settings.train.augment.rotation, settings.train.clip) == (0.001, 10, 3)
    assert settings.train.augment.crop == "torchvision"
    assert configure("tiny", file).train.preset == "tiny"


def test_a_trial_changes_the_preset_and_gives_way_to_all_else(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: {width: 96}\n")
    tried = configure("tiny", file, ["train.steps=5"], TRIAL)
    assert (tried.model.width, tried.train.steps) == (96, 5)
    assert (tried.model.image_size, tried.train.mask_ratio, tried.model.depth) == (64, 0.75, 4)
    assert configure("tiny").train.mask_ratio == 0.25  # the preset itself stays as it is


def test_unknown_presets_and_keys_are_refused() -> None:
    with pytest.raises(UsageError, match="official-notebook"):
        preset("papre")
    with pytest.raises(ConfigError, match="mask_ratio"):
        configure("paper", None, ["train.mask_rate=0.3"])
