"""Muon trains the matrices of the blocks, AdamW the rest; a cut training goes on with the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.mae.model import fresh
from usfmae.core.mae.optimizer_step import Muon, optimizer_of
from usfmae.core.mae.train import TrainContext, TrainPlan, train

MODEL = ModelSettings(
    image_size=32, patch_size=8, width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
)
SETTINGS = TrainSettings(optimizer="muon", batch_size=8, micro_batch=8, precision="fp32", checkpoint_steps=2, lr=1e-3)


def corpus(folder: Path) -> Corpus:
    random = np.random.default_rng(0)
    write_shard(
        folder, "all", [PackedImage(random.integers(0, 256, (32, 32), np.uint8), f"{i}", f"{i}") for i in range(16)]
    )
    return Corpus([folder])


def test_every_trained_tensor_has_one_optimizer() -> None:
    model = fresh(MODEL)
    optimizer = optimizer_of(model, SETTINGS)
    assert isinstance(optimizer, Muon)
    chosen = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(chosen) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    matrices = {id(p) for n, p in model.named_parameters() if "blocks." in n and p.ndim == 2}
    assert {id(p) for p in optimizer._muon.param_groups[0]["params"]} == matrices


def test_a_training_cut_in_two_ends_with_the_bits_of_one(tmp_path: Path) -> None:
    data = corpus(tmp_path / "corpus")
    every = np.arange(16)
    whole = fresh(MODEL)
    train(whole, data, SETTINGS, TrainPlan(every, 4))
    cut = fresh(MODEL)
    stopping = TrainContext(tmp_path / "s", on_step=lambda record: record.step == 2)
    train(cut, data, SETTINGS, TrainPlan(every, 4), stopping)
    again = fresh(MODEL)
    train(again, data, SETTINGS, TrainPlan(every, 4), TrainContext(tmp_path / "s"))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
