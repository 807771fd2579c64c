"""The look at an incoming encoder: what training makes passes, what an attack makes does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.client.conftest import MODEL
from usfmae.client.rounds import model_inspection
from usfmae.client.rounds.campaigns import AcceptedEncoder
from usfmae.core.checkpoint import decoder_of, encoder_of, tensors_id
from usfmae.core.errors import PolicyError
from usfmae.core.mae.model import fresh


@pytest.fixture
def encoder() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in encoder_of(fresh(MODEL, seed=3).state_dict()).items()}


def saved(tensors: dict[str, torch.Tensor], folder: Path) -> tuple[Path, str]:
    file = folder / "e.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file, tensors_id(tensors)


def accepted(seen: model_inspection.Inspection) -> AcceptedEncoder:
    return AcceptedEncoder({}, seen.norms, {name: list(shape) for name, shape in seen.shapes.items()}, 0.0)


def test_a_fresh_encoder_passes_and_its_norms_are_its_norms(encoder: dict[str, torch.Tensor], tmp_path: Path) -> None:
    norms = model_inspection.inspect(*saved(encoder, tmp_path)).norms
    assert norms == pytest.approx({name: float(tensor.norm()) for name, tensor in encoder.items()}, rel=1e-5)


def test_a_round_of_training_away_from_its_parent_passes(encoder: dict[str, torch.Tensor], tmp_path: Path) -> None:
    parent = accepted(model_inspection.inspect(*saved(encoder, tmp_path)))
    torch.manual_seed(0)
    moved = {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in encoder.items()}
    norms = model_inspection.inspect(*saved(moved, tmp_path), parent).norms
    assert norms.keys() == parent.norms.keys() and norms != parent.norms


def test_one_dead_row_is_normal_two_are_not(encoder: dict[str, torch.Tensor], tmp_path: Path) -> None:
    weight = encoder["blocks.0.attn.qkv.weight"]
    weight[5] = 0
    model_inspection.inspect(*saved(encoder, tmp_path))
    weight[6] = -2.5 * weight[7]
    with pytest.raises(PolicyError, match="2 rows are zero or copies"):
        model_inspection.inspect(*saved(encoder, tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e5])
def test_values_that_no_training_makes_are_refused(
    encoder: dict[str, torch.Tensor], tmp_path: Path, value: float
) -> None:
    encoder["blocks.0.mlp.fc1.weight"][0, 0] = value
    with pytest.raises(PolicyError, match=r"blocks\.0\.mlp\.fc1\.weight"):
        model_inspection.inspect(*saved(encoder, tmp_path))


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_a_tensor_whose_norm_jumped_is_refused(encoder: dict[str, torch.Tensor], tmp_path: Path, factor: float) -> None:
    parent = accepted(model_inspection.inspect(*saved(encoder, tmp_path)))
    encoder["blocks.0.mlp.fc1.weight"] *= factor
    with pytest.raises(PolicyError, match="norm went from"):
        model_inspection.inspect(*saved(encoder, tmp_path), parent)


def test_a_tensor_of_another_shape_than_its_parent_is_refused(encoder: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Same name, same values, same norm: only the shape is another."""
    parent = accepted(model_inspection.inspect(*saved(encoder, tmp_path)))
    encoder["blocks.0.mlp.fc1.weight"] = encoder["blocks.0.mlp.fc1.weight"].T.contiguous()
    with pytest.raises(PolicyError, match="shape went from"):
        model_inspection.inspect(*saved(encoder, tmp_path), parent)


def test_the_seeds_decoder_is_looked_at_too(tmp_path: Path) -> None:
    decoder = {name: tensor.clone() for name, tensor in decoder_of(fresh(MODEL, seed=3).state_dict()).items()}
    file, signed = saved(decoder, tmp_path)
    model_inspection.inspect_decoder(file, signed)
    with pytest.raises(PolicyError, match="not the one the coordinator signed"):
        model_inspection.inspect_decoder(file, "0" * 64)
    name = next(n for n, t in decoder.items() if t.ndim == 2 and len(t) >= 8)
    decoder[name][:] = decoder[name][0]
    with pytest.raises(PolicyError, match="copies of others"):
        model_inspection.inspect_decoder(*saved(decoder, tmp_path))


@pytest.mark.parametrize("factor", [1.0, 3.7, -1.0, 1e-4])
def test_copies_up_to_a_factor_count_as_copies(factor: float) -> None:
    rows = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    assert model_inspection.rows_alike(rows) == 0
    rows[1:20] = factor * rows[0]
    assert model_inspection.rows_alike(rows) == 19


def test_a_tensor_that_vanished_or_appeared_is_refused(encoder: dict[str, torch.Tensor], tmp_path: Path) -> None:
    parent = accepted(model_inspection.inspect(*saved(encoder, tmp_path)))
    fewer = {name: tensor for name, tensor in encoder.items() if name != "norm.bias"}
    with pytest.raises(PolicyError, match="other tensors"):
        model_inspection.inspect(*saved(fewer, tmp_path), parent)


@pytest.mark.parametrize("content", [b"", b"\0" * 20, b"\xff" * 64, b'\x10\0\0\0\0\0\0\0{"a": {"dtype"}}'])
def test_a_damaged_file_is_refused_not_a_crash(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(PolicyError):
        model_inspection.inspect(tmp_path / "x.safetensors", "0" * 64)
