"""Exports: read by the real library, equal to our own output; refused where they would not be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from usfmae.core.checkpoint import Loaded, encoder_of, load, read_tensors, save
from usfmae.core.checkpoint_header import describe
from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.errors import CheckpointError, UsageError
from usfmae.core.export import export, hf_mae
from usfmae.core.export.target import ExportOptions, model_of
from usfmae.core.mae.model import fresh
from usfmae.core.mae.weights import foreign_weights

MODEL = ModelSettings(
    image_size=32, patch_size=8, width=192, depth=2, heads=3, decoder_width=32, decoder_depth=1, decoder_heads=4
)
TRAIN = TrainSettings(preset="tiny", mask_ratio=0.5, norm_pix=True)


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    network = fresh(MODEL, TRAIN.mask_ratio, TRAIN.norm_pix)
    for parameter in network.parameters():  # biases and norms away from their initial 0 and 1
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter)))
    more = {"corpus": "f" * 64, "step": 300, "images": 1234, "datasets": json.dumps({"bus_bra": 1234})}
    metadata = describe(MODEL, TRAIN, parents=("parent-id",), held_out_loss=0.3, **more)
    return load(save(tmp_path / "c.safetensors", network.state_dict(), metadata).path)


@pytest.mark.parametrize("target", ["mae", "timm", "hf", "hf-mae", "onnx"])
def test_the_real_library_loads_an_export_and_agrees(loaded: Loaded, tmp_path: Path, target: str) -> None:
    if target in ("hf", "hf-mae", "onnx"):
        pytest.importorskip({"hf": "transformers", "hf-mae": "transformers", "onnx": "onnxruntime"}[target])
    if target == "onnx":
        pytest.importorskip("onnxscript")
    done = export(loaded, target, tmp_path / target)
    assert done.difference is not None and done.difference <= done.tolerance
    assert all(file.stat().st_size for file in done.files)


def test_timm_takes_the_weights_by_model_name_too(loaded: Loaded, tmp_path: Path) -> None:
    import timm

    export(loaded, "timm", tmp_path)
    theirs = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        depth=2,
        num_classes=0,
        checkpoint_path=str(tmp_path / "model.safetensors"),
    ).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(theirs.forward_features(images), model_of(loaded).features(images), atol=1e-4)


def test_an_export_shows_no_bar_of_another_library(
    loaded: Loaded, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    export(loaded, "hf", tmp_path)
    assert "Loading" not in capfd.readouterr().err


def test_timm_reads_normalisation_from_the_export(loaded: Loaded, tmp_path: Path) -> None:
    import timm

    export(loaded, "timm", tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    config = timm.data.resolve_model_data_config(theirs)
    assert (tuple(config["mean"]), tuple(config["std"]), config["input_size"]) == (TRAIN.mean, TRAIN.std, (3, 32, 32))


def test_a_difference_to_the_other_library_fails_the_export(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usfmae.core.export.timm.encoder_of", lambda t: {n: x * 1.01 for n, x in encoder_of(t).items()})
    with pytest.raises(CheckpointError, match="differs"):
        export(loaded, "timm", tmp_path)


def test_hugging_face_names_go_there_and_back(loaded: Loaded, tmp_path: Path) -> None:
    hf_mae.write(loaded, tmp_path)
    foreign = foreign_weights.read_foreign(tmp_path)
    tensors = foreign.tensors
    assert foreign.model == MODEL and foreign.train == {"mask_ratio": 0.5, "norm_pix": True}
    assert tensors.keys() == loaded.tensors.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in loaded.tensors.items())
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["layer_norm_eps"], config["norm_pix_loss"], config["mask_ratio"]) == (1e-6, True, 0.5)


# What `ViTMAEForPreTraining.state_dict()` of transformers 4.57.1 holds; `#` stands for the number of a block.
BLOCK_4 = (
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
    "layernorm_before",
    "layernorm_after",
)
NAMES_4 = {
    "vit.embeddings.cls_token",
    "vit.embeddings.position_embeddings",
    "decoder.mask_token",
    "decoder.decoder_pos_embed",
    *(
        f"{layer}.{kind}"
        for kind in ("weight", "bias")
        for layer in (
            "vit.embeddings.patch_embeddings.projection",
            "vit.layernorm",
            "decoder.decoder_embed",
            "decoder.decoder_norm",
            "decoder.decoder_pred",
            *(f"vit.encoder.layer.#.{part}" for part in BLOCK_4),
            *(f"decoder.decoder_layers.#.{part}" for part in BLOCK_4),
        )
    ),
}


def test_hugging_face_weights_have_the_names_of_4_and_the_installed_version_takes_every_one(
    loaded: Loaded, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    hf_mae.write(loaded, tmp_path)
    written, _ = read_tensors(tmp_path / hf_mae.WEIGHTS)
    assert {re.sub(r"\.\d+\.", ".#.", name) for name in written} == NAMES_4
    theirs, said = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(said.values()), said  # missing, unexpected, of another shape
    held = sorted(float(tensor.double().sum()) for tensor in theirs.state_dict().values())
    assert held == sorted(float(tensor.double().sum()) for tensor in written.values())


def test_hugging_face_needs_a_decoder(loaded: Loaded, tmp_path: Path) -> None:
    alone = Loaded(encoder_of(loaded.tensors), MODEL, TRAIN, loaded.metadata, loaded.trail)
    with pytest.raises(CheckpointError, match="no decoder"):
        export(alone, "hf-mae", tmp_path)
    assert export(alone, "timm", tmp_path / "timm").difference is not None


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_facebookresearch_files_are_read_in_every_form_found(
    loaded: Loaded, tmp_path: Path, wrapper: str | None, prefix: str
) -> None:
    tensors = {prefix + name: tensor for name, tensor in loaded.tensors.items()}
    torch.save({wrapper: tensors} if wrapper else tensors, tmp_path / "w.pt")
    found = foreign_weights.read_foreign(tmp_path / "w.pt").tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in loaded.tensors.items())


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch /tmp/usfmae-was-here",)


@pytest.mark.parametrize("content", ["pickle", "list", "empty", "text"])
def test_anything_but_tensors_is_refused_without_being_run(tmp_path: Path, content: str) -> None:
    path = tmp_path / "w.pth"
    values = {"pickle": {"model": Payload()}, "list": [1, 2], "empty": {}}
    if content == "text":
        path.write_text("hello")
    else:
        torch.save(values[content], path)
    with pytest.raises(CheckpointError, match=r"refused|no state dict"):
        foreign_weights.read_foreign(path)
    assert not Path("/tmp/usfmae-was-here").exists()


def test_the_card_tells_data_recipe_lineage_and_limits(loaded: Loaded, tmp_path: Path) -> None:
    export(loaded, "mae", tmp_path)
    card = (tmp_path / "README.md").read_text()
    for part in ("bus_bra | 1234", "mask ratio | 0.5", loaded.trail.id, "parent-id", "no medical device", "0.3"):
        assert part in card


def test_an_unknown_target_is_refused(loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="timm"):
        export(loaded, "tensorflow", tmp_path)


def test_files_can_be_read_by_whom_the_users_mask_lets(loaded: Loaded, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    export(loaded, "timm", tmp_path / "e")
    modes = {file.name: file.stat().st_mode for file in (tmp_path / "e").iterdir()}
    assert set(modes.values()) == {plain.stat().st_mode}, modes


def test_the_cards_head_is_what_hubs_read(loaded: Loaded, tmp_path: Path) -> None:
    export(loaded, "timm", tmp_path, ExportOptions(licence="apache-2.0", base_model="facebook/vit-mae-base"))
    head = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert (head["license"], head["base_model"], head["library_name"]) == (
        "apache-2.0",
        "facebook/vit-mae-base",
        "timm",
    )
    assert head["pipeline_tag"] == "image-feature-extraction"


def test_onnx_opset_and_ir_version_can_be_chosen_and_it_is_quiet(
    loaded: Loaded, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    export(loaded, "onnx", tmp_path, ExportOptions(opset=18, ir_version=9))
    model = onnx.load(tmp_path / "encoder.onnx")
    assert model.ir_version == 9 and {i.version for i in model.opset_import if not i.domain} == {18}
    assert "constant folding" not in capfd.readouterr().err
