"""The model computes MAE's objective: held against Hugging Face's implementation, and against itself by other ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from usfmae.core.config import ModelSettings
from usfmae.core.errors import CheckpointError
from usfmae.core.export.hf import renamed
from usfmae.core.mae import device
from usfmae.core.mae.device import training_flops
from usfmae.core.mae.model import Attention, MaskedAutoencoder, fresh, load_tensors

SMALL = ModelSettings(
    image_size=48, patch_size=8, width=64, depth=2, heads=4, decoder_width=32, decoder_depth=2, decoder_heads=4
)


def images_and_noise(model: ModelSettings = SMALL, count: int = 3) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    patches = (model.image_size // model.patch_size) ** 2
    images = torch.randn(count, 3, model.image_size, model.image_size, generator=random)
    return images, torch.rand(count, patches, generator=random)


def gradients(model: MaskedAutoencoder, full: bool = True) -> tuple[float, dict[str, Tensor]]:
    images, noise = images_and_noise(model.settings)
    model.zero_grad()
    loss = model(images, noise, full)[0]
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def relative(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))


@pytest.mark.parametrize("mask_ratio", [0.25, 0.75])
@pytest.mark.parametrize("norm_pix", [False, True])
def test_loss_and_gradients_equal_hugging_face(mask_ratio: float, norm_pix: bool) -> None:
    transformers = pytest.importorskip("transformers")
    model = fresh(SMALL, mask_ratio, norm_pix)
    theirs = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            image_size=48,
            patch_size=8,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=4,
            decoder_intermediate_size=128,
            layer_norm_eps=1e-6,
            mask_ratio=mask_ratio,
            norm_pix_loss=norm_pix,
        )
    )
    names = {**renamed(model.state_dict())}
    new = {to_version_5(name): tensor for name, tensor in names.items()}
    theirs.load_state_dict(names if set(names) == set(theirs.state_dict()) else new)
    images, noise = images_and_noise()
    answer = theirs(images, noise=noise)
    answer.loss.backward()
    loss, prediction, mask = model(images, noise)
    assert torch.equal(mask, answer.mask)
    assert relative(prediction, answer.logits) < 1e-5
    assert abs(loss.item() - answer.loss.item()) < 1e-5 * loss.item()
    loss.backward()
    ours = renamed({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    found = dict(theirs.named_parameters())
    for name, gradient in ours.items():
        other = found[name] if name in found else found[to_version_5(name)]
        if "key.bias" in name:  # softmax does not see it: zero up to rounding on both sides
            assert gradient.abs().max() < 1e-6
        else:
            assert relative(gradient, other.grad) < 1e-5, name


def to_version_5(name: str) -> str:
    """transformers 4.x names as 5.x holds them in memory."""
    swaps = {
        "vit.encoder.layer.": "vit.layers.",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    for before, after in swaps.items():
        name = name.replace(before, after)
    return name


@pytest.mark.parametrize("norm_pix", [False, True])
def test_predicting_masked_patches_only_changes_neither_loss_nor_gradients(norm_pix: bool) -> None:
    model = fresh(SMALL, 0.25, norm_pix)
    loss, grads = gradients(model)
    short, short_grads = gradients(model, full=False)
    assert short == pytest.approx(loss, rel=1e-6)
    for name, gradient in grads.items():
        assert torch.allclose(short_grads[name], gradient, rtol=1e-4, atol=1e-7), name


def test_hidden_patches_do_not_reach_the_prediction() -> None:
    model = fresh(SMALL, 0.5).eval()
    images, noise = images_and_noise()
    _, prediction, mask = model(images, noise)
    changed = model.unpatchify(model.patchify(images) + 100 * mask[..., None])
    assert torch.equal(model(changed, noise)[1], prediction)
    seen = model.unpatchify(model.patchify(images) + 100 * (1 - mask[..., None]))
    assert not torch.allclose(model(seen, noise)[1], prediction)


def test_patchify_and_back() -> None:
    model = fresh(SMALL)
    images, _ = images_and_noise()
    assert torch.equal(model.unpatchify(model.patchify(images)), images)


@torch.no_grad()
def test_features_are_the_blocks_over_the_convolution_of_the_whole_image() -> None:
    model = fresh(SMALL).eval()
    images, _ = images_and_noise()
    x = model.patch_embed.proj(images).flatten(2).transpose(1, 2) + model.pos_embed[:, 1:]
    x = torch.cat([(model.cls_token + model.pos_embed[:, :1]).expand(3, -1, -1), x], dim=1)
    for block in model.blocks:
        x = block(x)
    assert torch.allclose(model.features(images), model.norm(x), atol=1e-5)


def test_written_out_attention_equals_sdpa_up_to_bf16() -> None:
    torch.manual_seed(0)
    attention = Attention(64, 4)
    x = torch.randn(2, 20, 64)
    exact = attention(x)
    with torch.autocast("cpu", torch.bfloat16):
        written_out = attention(x)
    assert relative(written_out.float(), exact) < 2e-2
    assert torch.allclose(attention(x, last=5), exact[:, -5:], atol=1e-6)


@pytest.mark.parametrize(
    ("machine", "facts", "pays"),
    [
        ("x86_64", "flags: avx512f avx512_bf16 amx_bf16 amx_tile", True),
        ("x86_64", "flags: avx512f avx512_bf16", False),
        ("aarch64", "Features: bf16", True),
    ],
)
def test_bf16_is_computed_on_processors_where_it_is_the_faster_type(
    monkeypatch: pytest.MonkeyPatch, machine: str, facts: str, pays: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(Path, "read_text", lambda _: facts)
    device.multiplies_bf16.cache_clear()
    try:
        assert device.computed("bf16", "cpu") == ("bf16" if pays else "fp32")
        assert device.computed("fp32", "cpu") == "fp32"
        with device.autocast(torch.device("cpu"), "bf16"):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if pays else torch.float32)
    finally:
        device.multiplies_bf16.cache_clear()


def test_decoder_heads_do_not_show_in_shapes_but_change_the_result() -> None:
    eight, sixteen = fresh(SMALL), MaskedAutoencoder(SMALL.model_copy(update={"decoder_heads": 8}))
    load_tensors(sixteen, eight.state_dict())
    images, noise = images_and_noise()
    assert not torch.allclose(eight(images, noise)[0], sixteen(images, noise)[0], rtol=1e-5)


def test_the_official_architecture_has_its_254_tensors() -> None:
    tensors = MaskedAutoencoder(ModelSettings()).state_dict()
    assert len(tensors) == 254
    assert sum(tensor.numel() for tensor in tensors.values()) == 111_907_840


def test_operations_of_a_training_image_are_111_gflop() -> None:
    assert training_flops(ModelSettings(), 0.25) == pytest.approx(111.0e9, rel=5e-3)
    assert training_flops(ModelSettings(), 0.75) == pytest.approx(58.7e9, rel=1e-2)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert all(
        torch.equal(a, b)
        for a, b in zip(fresh(SMALL).state_dict().values(), fresh(SMALL).state_dict().values(), strict=True)
    )
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_are_named(damage: str) -> None:
    model = fresh(SMALL)
    tensors = dict(model.state_dict())
    if damage == "missing":
        del tensors["norm.weight"]
    elif damage == "unknown":
        tensors["norm.weird"] = torch.zeros(1)
    else:
        tensors["norm.weight"] = torch.zeros(7)
    with pytest.raises(CheckpointError, match=r"norm\.we"):
        load_tensors(model, tensors)
