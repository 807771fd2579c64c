"""The look at an incoming encoder: what training makes passes, what an attack makes does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from usfmae.client import incoming
from usfmae.core.checkpoint import encoder_of, tensors_id
from usfmae.core.errors import PolicyError
from usfmae.core.model import fresh

from .conftest import MODEL


@pytest.fixture
def encoder() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in encoder_of(fresh(MODEL, seed=3).state_dict()).items()}


def saved(tensors: dict[str, torch.Tensor], folder: Path) -> tuple[Path, str]:
    file = folder / "e.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file, tensors_id(tensors)


def test_a_fresh_encoder_passes_and_its_norms_are_its_norms(encoder: dict[str, torch.Tensor], tmp_path: Path) -> None:
    norms = incoming.inspect(*saved(encoder, tmp_path))
    assert norms == pytest.approx({name: float(tensor.norm()) for name, tensor in encoder.items()}, rel=1e-5)


def test_a_round_of_training_away_from_its_parent_passes(encoder: dict[str, torch.Tensor], tmp_path: Path) -> None:
    parent = incoming.inspect(*saved(encoder, tmp_path))
    torch.manual_seed(0)
    moved = {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in encoder.items()}
    norms = incoming.inspect(*saved(moved, tmp_path), parent)
    assert norms.keys() == parent.keys() and norms != parent


def test_one_dead_row_is_normal_two_are_not(encoder: dict[str, torch.Tensor], tmp_path: Path) -> None:
    weight = encoder["blocks.0.attn.qkv.weight"]
    weight[5] = 0
    incoming.inspect(*saved(encoder, tmp_path))
    weight[6] = -2.5 * weight[7]
    with pytest.raises(PolicyError, match="2 rows are zero or copies"):
        incoming.inspect(*saved(encoder, tmp_path))


@pytest.mark.parametrize("factor", [1.0, 3.7, -1.0, 1e-4])
def test_copies_up_to_a_factor_count_as_copies(factor: float) -> None:
    rows = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    assert incoming.rows_alike(rows) == 0
    rows[1:20] = factor * rows[0]
    assert incoming.rows_alike(rows) == 19


def test_a_tensor_that_vanished_or_appeared_is_refused(encoder: dict[str, torch.Tensor], tmp_path: Path) -> None:
    parent = incoming.inspect(*saved(encoder, tmp_path))
    fewer = {name: tensor for name, tensor in encoder.items() if name != "norm.bias"}
    with pytest.raises(PolicyError, match="other tensors"):
        incoming.inspect(*saved(fewer, tmp_path), parent)


@pytest.mark.parametrize("content", [b"", b"\0" * 20, b"\xff" * 64, b'\x10\0\0\0\0\0\0\0{"a": {"dtype"}}'])
def test_a_damaged_file_is_refused_not_a_crash(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(PolicyError):
        incoming.inspect(tmp_path / "x.safetensors", "0" * 64)
