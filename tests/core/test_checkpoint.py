"""Checkpoints: equal weights have equal ids; damage, foreign files and half-written ones are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from usfmae.core.checkpoint import Loaded, decoder_of, encoder_of, load, save, tensors_id, write_tensors
from usfmae.core.checkpoint_header import describe, recipe_of, recipe_text
from usfmae.core.config import ModelSettings, TrainRecipe
from usfmae.core.errors import CheckpointError, ConfigError, ResourceError
from usfmae.core.export import mae
from usfmae.core.files import replacing, write_atomic
from usfmae.core.mae import train_log
from usfmae.core.mae.model import fresh
from usfmae.core.types import Trail

MODEL = ModelSettings(
    image_size=32, patch_size=8, width=32, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
)
TRAIN = TrainRecipe(mask_ratio=0.4, norm_pix=True, mean=(0.1, 0.2, 0.3))
FULL = Path("/dev/full")  # every write to it fails as on a full disk


def test_everything_stated_comes_back(tmp_path: Path) -> None:
    tensors = fresh(MODEL).state_dict()
    saved = save(tmp_path / "c.safetensors", tensors, describe(MODEL, TRAIN, parents=("p",), corpus="abc", step=7))
    found = load(saved.path)
    assert (found.model, found.train) == (MODEL, TRAIN)
    assert (found.metadata["corpus"], found.metadata["step"]) == ("abc", "7")
    assert found.trail.id == saved.trail.id == tensors_id(tensors) and found.trail.parents == ("p",)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())


def test_the_id_sees_names_types_shapes_and_values_and_nothing_else() -> None:
    base = {"a": torch.arange(6.0), "b": torch.ones(2, 3)}
    assert tensors_id(base) == tensors_id(dict(reversed(base.items())))
    assert tensors_id(base) == tensors_id({"a": torch.arange(6.0), "b": torch.ones(3, 2).t()})
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"].double(), "b": base["b"]},
        {"a": base["a"].view(2, 3), "b": base["b"]},
        {"a": base["a"] + 1e-6, "b": base["b"]},
    ]
    assert len({tensors_id(tensors) for tensors in [base, *others]}) == 5


def test_encoder_and_decoder_part_by_name() -> None:
    tensors = fresh(MODEL).state_dict()
    assert encoder_of(tensors).keys() | decoder_of(tensors).keys() == tensors.keys()
    assert not encoder_of(tensors).keys() & decoder_of(tensors).keys()
    assert "mask_token" in decoder_of(tensors) and "norm.weight" in encoder_of(tensors)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "foreign"])
def test_a_file_that_is_no_sound_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "c.safetensors"
    save(path, fresh(MODEL).state_dict(), describe(MODEL, TRAIN))
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-5] ^= 1
    path.write_bytes({"cut": data[:-7], "empty": b""}.get(damage, data))
    if damage == "gone":
        path.unlink()
    if damage == "foreign":
        save_file({"a": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"c\.safetensors"):
        load(path)


def test_a_pickle_under_our_name_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="safetensors"):
        load(tmp_path / "c.safetensors")


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomic(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomic(path, b"old")
    with pytest.raises(ResourceError, match="is full"), replacing(path), FULL.open("wb", buffering=0) as full:
        full.write(b"x")
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("kind", ["weights", "mae", "bytes", "log"])
def test_every_writer_says_that_a_real_disk_is_full_and_leaves_what_was_there(small_disk: Path, kind: str) -> None:
    """safetensors, torch and Python each wrap the operating system's error in another way."""
    path = small_disk / ("mae.pth" if kind == "mae" else "file")
    path.write_bytes(b"old\n")
    big = {"a": torch.ones(100_000)}
    with pytest.raises(ResourceError, match=rf"disk of {small_disk} - is full - free space"):
        if kind == "weights":
            write_tensors(path, big, {})
        elif kind == "mae":
            mae.write(Loaded(big, MODEL, TRAIN, {}, Trail("")), small_disk)
        elif kind == "bytes":
            write_atomic(path, bytes(400_000))
        else:
            train_log.append(path, {"step": 1, "text": "x" * 400_000})
    assert path.read_bytes().startswith(b"old\n") and [p.name for p in small_disk.iterdir()] == [path.name]


def test_a_recipe_goes_over_the_wire_and_back() -> None:
    assert recipe_of(recipe_text(MODEL, TRAIN)) == (MODEL, TRAIN)
    with pytest.raises(ConfigError):
        recipe_of('{"model": {}}')
