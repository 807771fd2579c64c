"""The programs that `step.py` times: each takes (model, train, device) settings and gives one optimizer step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

Step = Callable[[], None]


def ours(model: Any, train: Any, device: str, compiled: bool = False) -> Step:
    """The product's own path from uint8 pixels to updated weights."""
    import numpy as np

    from usfmae.core.config import TrainRecipe
    from usfmae.core.corpus.loader import Prepared
    from usfmae.core.mae.model import fresh
    from usfmae.core.mae.optimizer_step import Stepper

    network = fresh(model, train.mask_ratio, train.norm_pix, train.seed).to(device)
    stepper = Stepper(network, TrainRecipe.of(train, compile=compiled))
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (train.batch_size, model.image_size, model.image_size, 1), np.uint8)
    noise = random.random((train.batch_size, (model.image_size // model.patch_size) ** 2), np.float32)
    batch = Prepared(0, pixels, noise, ())

    def step() -> None:
        stepper.step(batch, train.lr)

    return step


def hugging_face(model: Any, train: Any, device: str, attention: str | None = None) -> Step:
    """ViTMAEForPreTraining under bf16 autocast with PyTorch's AdamW, the whole batch at once."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(  # type: ignore[call-arg]
        image_size=model.image_size,
        patch_size=model.patch_size,
        hidden_size=model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        intermediate_size=4 * model.width,
        decoder_hidden_size=model.decoder_width,
        decoder_num_hidden_layers=model.decoder_depth,
        decoder_num_attention_heads=model.decoder_heads,
        decoder_intermediate_size=4 * model.decoder_width,
        mask_ratio=train.mask_ratio,
        norm_pix_loss=train.norm_pix,
        layer_norm_eps=1e-6,
        attn_implementation=attention,
    )
    network = ViTMAEForPreTraining(config).to(device).train()
    HF_ATTENTION.append(network.config._attn_implementation)
    optimizer = torch.optim.AdamW(network.parameters(), train.lr, train.betas, weight_decay=train.weight_decay)
    images = torch.randn(train.batch_size, 3, model.image_size, model.image_size, device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=train.precision == "bf16"):
            loss = network(images).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), train.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def bf16(make: Callable[..., Step]) -> Callable[..., Step]:
    """The same program made to compute bf16, whatever pays here."""

    def made(*arguments: Any) -> Step:
        step = make(*arguments)

        def forced() -> None:
            with patch.dict("usfmae.core.mae.device.settled", {"cpu": True}):
                step()

        return forced

    return made


def widened(make: Callable[..., Step]) -> Callable[..., Step]:
    """bf16 whose linear layers multiply in fp32: operands and results are rounded as ever, and the sums are the same.

    A product of two bf16 numbers is exact in fp32, which bf16 instructions sum in too; some CPUs have faster fp32 ones.
    """
    import torch
    from torch import Tensor

    plain = torch.nn.functional.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return plain(*(value.bfloat16().float() for value in (x, weight, bias))).bfloat16()

    def made(*arguments: Any) -> Step:
        step = bf16(make)(*arguments)

        def changed() -> None:
            with patch("torch.nn.functional.linear", linear):
                step()

        return changed

    return made


HF_ATTENTION: list[str] = []
PROGRAMS: dict[str, Callable[[Any, Any, str], Step]] = {
    "ours": ours,
    "ours-compiled": lambda *a: ours(*a, compiled=True),
    "ours-bf16": lambda *a: bf16(ours)(*a),
    "ours-bf16-widened": lambda *a: widened(ours)(*a),
    "hf": hugging_face,
    "hf-fp32": lambda m, t, d: hugging_face(m, t.model_copy(update={"precision": "fp32"}), d),
    "hf-eager": lambda *a: hugging_face(*a, attention="eager"),
}
