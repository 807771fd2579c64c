"""A model card shows results of exactly its own weights, as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from usfmae.core.bench.encoders.masked import checkpoint as encoder_for_probe
from usfmae.core.bench.metrics import Predictions, measures
from usfmae.core.checkpoint import encoder_of, load, save
from usfmae.core.checkpoint_header import describe
from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.errors import PolicyError, SourceError
from usfmae.core.mae.model import MaskedAutoencoder
from usfmae.server.releases.benchmark_results import results

MODEL = ModelSettings(
    image_size=16, patch_size=8, width=16, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2
)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    train = TrainSettings()
    model = MaskedAutoencoder(MODEL, train.mask_ratio, train.norm_pix)
    save(tmp_path / "weights.safetensors", dict(model.state_dict()), describe(MODEL, train, parents=()))
    return tmp_path / "weights.safetensors"


TWO = Predictions(np.array([0, 1]), np.eye(2), ("p", "q"), ("a", "b"), ("s", "s"))
MEASURED = tuple(measures(TWO))  # what a probe really reports


def report(model_id: str) -> dict[str, Any]:
    measure = {"value": 0.631, "low": 0.602, "high": 0.66}
    scores = {"knn": {"all": {**dict.fromkeys(MEASURED, measure), "confusion": [[1, 0], [0, 1]]}}}
    task = {"name": "bus-bra", "images": 1875, "classes": ["benign", "malignant"]}
    other = {"model": "random", "model_id": "f" * 64, "scores": scores}
    return {"task": task, "models": [{"model": "a.safetensors", "model_id": model_id, "scores": scores}, other]}


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_results_of_these_weights_become_a_table(weights: Path, tmp_path: Path, pooling: Any) -> None:
    probed = encoder_for_probe(str(weights), pooling).id
    (tmp_path / "report.json").write_text(json.dumps(report(probed)))
    loaded = load(weights)
    head, line = results([tmp_path / "report.json"], encoder_of(loaded.tensors), loaded.train)
    assert dict(zip(head, line, strict=True)) == {
        "task": "bus-bra", "images": "1875", "head": "knn", "splits": "all",
        **dict.fromkeys(("paper.f1", "ultrasam.f1", "balanced_accuracy", "auroc", "auroc_by_split"), "63.1 (60.2-66.0)"),
    }  # fmt: skip
    assert results([], encoder_of(loaded.tensors), loaded.train) == []


def test_results_of_other_weights_are_refused(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report("e" * 64)))
    loaded = load(weights)
    with pytest.raises(PolicyError, match="other weights"):
        results([tmp_path / "report.json"], encoder_of(loaded.tensors), loaded.train)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"task": {"name": "a", "images": 1}, "models": [{}]}', '{"task": 1}']
)
def test_another_file_is_one_sentence(weights: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    loaded = load(weights)
    with pytest.raises(SourceError, match="no report"):
        results([tmp_path / "report.json"], encoder_of(loaded.tensors), loaded.train)
