"""Weights as people have them: training states, prefixes, folders, shards; and what is refused, in whole sentences."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections import Counter, defaultdict, deque
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from usfmae.core.checkpoint import encoder_of, load
from usfmae.core.cli import group
from usfmae.core.config import ModelSettings
from usfmae.core.errors import CheckpointError
from usfmae.core.mae.model import fresh, sincos
from usfmae.core.mae.weights.foreign_weights import read_foreign
from usfmae.core.mae.weights.init_weights import load_any, read, resampled

MODEL = ModelSettings(
    image_size=32, patch_size=8, width=192, depth=2, heads=3, decoder_width=32, decoder_depth=1, decoder_heads=8
)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return dict(fresh(MODEL).state_dict())


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "module._orig_mod.", "model.", "net.", "model._orig_mod.", "lightning.mae."]
)
def test_the_prefixes_of_wrappers_are_seen_through(tmp_path: Path, tensors: dict[str, Tensor], prefix: str) -> None:
    beside = {"n_averaged": torch.tensor(3), "criterion.weight": torch.ones(2)}
    torch.save({"state_dict": {**{prefix + n: t for n, t in tensors.items()}, **beside}}, tmp_path / "last.ckpt")
    assert same(read_foreign(tmp_path / "last.ckpt").tensors, tensors)


def test_the_model_is_taken_and_its_averaged_copy_left(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    averaged = {n: t + 1 for n, t in tensors.items()}
    torch.save({"model": tensors, "model_ema": averaged}, tmp_path / "both.pth")
    torch.save({"model_ema": averaged}, tmp_path / "one.pth")
    mixed = {**{f"ema_model.{n}": t for n, t in averaged.items()}, **{f"model.{n}": t for n, t in tensors.items()}}
    torch.save(mixed, tmp_path / "mixed.pth")
    assert same(read_foreign(tmp_path / "both.pth").tensors, tensors)
    assert same(read_foreign(tmp_path / "mixed.pth").tensors, tensors)
    assert same(read_foreign(tmp_path / "one.pth").tensors, averaged)


class Config:
    """A class of somebody's own, which a reader does not have."""

    def __init__(self) -> None:
        self.lr, self.folder = 1e-3, pathlib.PurePosixPath("data")


def test_a_training_state_is_read_with_its_arguments_and_without_its_classes(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    arguments = argparse.Namespace(
        model="mae_vit_base_patch16_dec512d8b", mask_ratio=0.5, norm_pix_loss=True, output_dir=pathlib.Path("out")
    )
    state = {"model": tensors, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "epoch": 3, "scaler": {}}
    more = {"args": arguments, "hyper_parameters": Config(), "counter": Counter("ab")}
    torch.save({**state, **more}, tmp_path / "checkpoint-3.pth")
    found = read_foreign(tmp_path / "checkpoint-3.pth")
    assert same(found.tensors, tensors) and found.train == {"mask_ratio": 0.5, "norm_pix": True}
    assert found.model.decoder_heads == 16 and not found.unstated  # the name of the model says so


@pytest.mark.parametrize("kind", ["defaultdict", "deque", "omegaconf", "the whole"])
def test_containers_that_training_scripts_keep_beside_the_tensors(
    tmp_path: Path, tensors: dict[str, Tensor], kind: str
) -> None:
    state: dict[str, object] = {"model": tensors, "epoch": 3}
    if kind == "defaultdict":
        state |= {"meters": defaultdict(list, {"loss": [0.5]})}
    elif kind == "deque":
        state |= {"recent": deque([0.5, 0.4], maxlen=20)}
    elif kind == "omegaconf":
        omegaconf = pytest.importorskip("omegaconf")
        state |= {"cfg": omegaconf.OmegaConf.create({"lr": 1e-3, "model": {"sizes": [1, 2]}})}
    torch.save(defaultdict(int, tensors) if kind == "the whole" else state, tmp_path / "w.pth")
    assert same(read_foreign(tmp_path / "w.pth").tensors, tensors)


class Evaluated:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1 + 1",)


def test_a_part_of_builtins_that_acts_is_refused_by_name(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({"model": tensors, "extra": Evaluated()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"ask for builtins\.eval, which has no place"):
        read_foreign(tmp_path / "w.pth")


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch /tmp/usfmae-foreign-was-here",)


def test_what_would_act_is_refused_by_name_and_never_run(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({"model": tensors, "extra": Hostile()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"ask for posix\.system, which has no place"):
        read_foreign(tmp_path / "w.pth")
    assert not Path("/tmp/usfmae-foreign-was-here").exists()


@pytest.mark.parametrize("content", [b"hello", b"", b"PK\x03\x04 half a zip"])
def test_what_is_no_checkpoint_is_said_in_a_whole_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="no file of tensors, refused") as caught:
        read_foreign(tmp_path / "w.pt")
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["bin", "shards", "bin shards"])
def test_folders_with_bin_files_and_shards(tmp_path: Path, tensors: dict[str, Tensor], form: str) -> None:
    names = sorted(tensors)
    halves = [{n: tensors[n].clone() for n in part} for part in (names[::2], names[1::2])]
    if form == "bin":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        suffix, base = (".bin", "pytorch_model") if form == "bin shards" else (".safetensors", "model")
        files = [f"{base}-0000{k}-of-00002{suffix}" for k in (1, 2)]
        for file, half in zip(files, halves, strict=True):
            torch.save(half, tmp_path / file) if suffix == ".bin" else save_file(half, tmp_path / file)
        where = {n: file for file, half in zip(files, halves, strict=True) for n in half}
        (tmp_path / f"{base}{suffix}.index.json").write_text(json.dumps({"weight_map": where}))
    assert same(read_foreign(tmp_path).tensors, tensors)


def test_an_index_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        read_foreign(tmp_path)


@pytest.mark.parametrize("kind", ["ViTMAEForPreTraining", "ViTMAEModel", "ViTModel", "ViTForImageClassification"])
def test_folders_and_states_of_the_installed_transformers_are_read(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig if "MAE" in kind else transformers.ViTConfig
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3}
    more = {
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 8,
        "decoder_intermediate_size": 128,
    }
    model = getattr(transformers, kind)(
        config(**sizes, intermediate_size=768, layer_norm_eps=1e-6, **(more if "MAE" in kind else {}))
    ).eval()
    model.save_pretrained(tmp_path / "folder")  # the names on disk are those of 4
    torch.save(model.state_dict(), tmp_path / "state.pt")  # the names in memory are those of 5
    for path in (tmp_path / "folder", tmp_path / "state.pt"):
        found = read_foreign(path)
        assert (found.model.width, found.model.heads, found.model.depth) == (192, 3, 2)
        ours = fresh(found.model)
        ours.load_state_dict(found.tensors, strict=False)
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        noise = torch.arange(16.0).expand(2, -1)  # nothing is shuffled
        inner = getattr(model, "vit", model)
        inner.config.mask_ratio = 0.0
        with torch.no_grad():
            theirs = inner(images, **({"noise": noise} if "MAE" in kind else {})).last_hidden_state
            assert (theirs - ours.features(images)).abs().max() < 1e-5


def test_what_is_no_plain_vit_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    cases = {
        "hold no vision transformer": {"conv1.weight": torch.ones(2)},
        "average pooling": {
            **{n: t for n, t in tensors.items() if not n.startswith("norm.")},
            "fc_norm.weight": torch.ones(192),
        },
        "reg_token|lack tensor cls_token": {n: t for n, t in tensors.items() if n != "cls_token"},
        "blocks.0.ls1.gamma, which a plain ViT has not": {**tensors, "blocks.0.ls1.gamma": torch.ones(192)},
    }
    for message, case in cases.items():
        torch.save(case, tmp_path / "w.pt")
        with pytest.raises(CheckpointError, match=message):
            read_foreign(tmp_path / "w.pt")


def test_heads_that_nothing_states_cost_the_decoder_not_the_encoder(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, tmp_path / "bare.pt")
    assert read(tmp_path / "bare.pt").unstated == {"decoder_heads"}
    assert same(load_any(tmp_path / "bare.pt").tensors, encoder_of(tensors))
    whole = load_any(tmp_path / "bare.pt", decoder_heads=8)
    assert same(whole.tensors, tensors) and whole.model == MODEL
    assert whole.trail.id == whole.metadata["content"] and whole.trail.id in whole.trail.parents  # the same tensors


def test_import_writes_our_checkpoint(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    from click.testing import CliRunner

    torch.save({"model": tensors}, tmp_path / "theirs.pth")
    arguments = ["import", str(tmp_path / "theirs.pth"), "--out", str(tmp_path / "ours.safetensors")]
    refused = CliRunner().invoke(group, arguments)
    assert "--decoder-heads 8" in str(refused.exception)
    CliRunner().invoke(group, [*arguments, "--decoder-heads", "8"], catch_exceptions=False)
    found = load(tmp_path / "ours.safetensors")
    assert same(found.tensors, tensors) and found.model == MODEL and len(found.trail.parents) == 1
    assert found.metadata["imported"] == "theirs.pth"


def test_positions_are_resampled_smoothly_and_the_class_tokens_stay() -> None:
    table = sincos(64, 4)
    larger = resampled(table, 8)
    assert larger.shape == (1, 65, 64) and torch.equal(larger[:, :1], table[:, :1])
    back = resampled(larger, 4)
    assert (back - table).abs().mean() < 0.1 * table.abs().mean()


@pytest.mark.parametrize("content", ['{"model_args": 5}', '{"pretrained_cfg": {"mean": 3}}'])
def test_a_config_of_another_form_is_said_in_a_sentence(
    tmp_path: Path, tensors: dict[str, Tensor], content: str
) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_foreign(tmp_path)


@pytest.mark.parametrize(
    ("name", "tensor", "why"),
    [
        ("blocks.1.norm1.bias", None, "is missing"),
        ("decoder_blocks.0.attn.qkv.weight", torch.zeros(5, 5), "has shape"),
        ("blocks.0.mlp.fc1.bias", torch.full((768,), torch.nan), "no numbers"),
    ],
)
def test_weights_that_are_not_whole_are_refused_by_the_name_of_the_tensor(
    tmp_path: Path, tensors: dict[str, Tensor], name: str, tensor: Tensor | None, why: str
) -> None:
    changed = {n: t for n, t in {**tensors, name: tensor}.items() if t is not None}
    torch.save({"model": changed}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"{name}.*{why}"):
        load_any(tmp_path / "w.pth", None, 8)
