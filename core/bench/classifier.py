"""The classifier that fine-tuning leaves: the best run's weights, and its forms for timm and ONNX.

`classifier.safetensors` holds encoder and head as timm names them, with classes, pixels and scores in its metadata. A
batch norm before the head is folded into the head: in use it is a fixed scale and shift.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from usfmae.core.bench.encoders.base import Encoder
from usfmae.core.bench.encoders.masked import MaskedEncoder
from usfmae.core.bench.fit import FitRun
from usfmae.core.bench.tasks.base import BenchmarkTask
from usfmae.core.checkpoint import encoder_of, read_metadata, read_tensors, write_tensors
from usfmae.core.config import ModelSettings
from usfmae.core.errors import CheckpointError, UsageError, needs
from usfmae.core.files import replacing, write_atomic

WEIGHTS = "classifier.safetensors"
FORMAT = "usfmae-classifier-1"
TOLERANCE = 1e-3
EPSILON = 1e-6  # of the batch norm before the head


def keep_best(path: Path, task: BenchmarkTask, encoder: Encoder, run: FitRun) -> None:
    """Write the run's weights where they beat those that are there by their validation score. Not for timm's models."""
    if run.weights is None or not isinstance(encoder.module, MaskedEncoder):
        return
    if path.exists() and _score(read_metadata(path)) >= (run.validation, -run.validation_loss):
        return
    module = encoder.module
    facts: dict[str, Any] = {
        "format": FORMAT,
        "task": task.name,
        "classes": json.dumps(task.classes),
        "split": run.split,
        "seed": run.seed,
        "validation": run.validation,
        "validation_loss": run.validation_loss,
        "encoder": encoder.id,
        "model": module.autoencoder.settings.model_dump_json(),
        "pooling": module.pooling,
        "mean": json.dumps(encoder.mean),
        "std": json.dumps(encoder.std),
        "aspect": encoder.aspect,
    }
    write_tensors(path, as_timm(run.weights), {name: str(value) for name, value in facts.items()})


def _score(metadata: Mapping[str, str]) -> tuple[float, float]:
    return float(metadata.get("validation", "-1")), -float(metadata.get("validation_loss", "inf"))


def as_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Encoder `0.autoencoder.*` and head `1.*` under timm's names, the batch norm folded into the head."""
    encoder = {n.removeprefix("0.autoencoder."): t for n, t in weights.items() if n.startswith("0.autoencoder.")}
    prefix = "1.1." if "1.1.weight" in weights else "1."
    weight, bias = weights[f"{prefix}weight"], weights[f"{prefix}bias"]
    if prefix == "1.1.":
        scale = (weights["1.0.running_var"] + EPSILON).rsqrt()  # (D,)
        bias = bias - weight @ (weights["1.0.running_mean"] * scale)
        weight = weight * scale
    tensors = {**encoder_of(encoder), "head.weight": weight, "head.bias": bias}
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def export(path: Path, target: str, out: Path) -> list[Path]:
    """The classifier as a timm folder, or as ONNX (images (B, 3, S, S) normalised -> logits (B, K)), with a card.

    Raises CheckpointError where the file is no classifier, UsageError for another target.
    """
    if target not in ("timm", "onnx"):
        raise UsageError(f"target {target}", "a classifier is written for timm or onnx", "choose one of them")
    tensors, facts = read_tensors(path)
    if facts.get("format") != FORMAT:
        raise CheckpointError(f"{path}", "is no classifier of 'usfmae finetune'", "give OUT/classifier.safetensors")
    files = (
        [_timm_weights(tensors, out), _timm_config(facts, out)] if target == "timm" else [_onnx(tensors, facts, out)]
    )
    write_atomic(out / "README.md", card(facts, target).encode())
    return [*files, out / "README.md"]


def timm_arguments(facts: Mapping[str, str]) -> dict[str, Any]:
    """Arguments for timm's VisionTransformer. Mean pooling is of normalised patch tokens, without a second norm."""
    model = ModelSettings.model_validate_json(facts["model"])
    return {
        "img_size": model.image_size,
        "patch_size": model.patch_size,
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "num_classes": len(json.loads(facts["classes"])),
        "global_pool": "token" if facts["pooling"] == "cls" else "avg",
        "fc_norm": False,
    }


def _timm_weights(tensors: Mapping[str, Tensor], out: Path) -> Path:
    write_tensors(out / "model.safetensors", tensors, {"format": "pt"})
    return out / "model.safetensors"


def _timm_config(facts: Mapping[str, str], out: Path) -> Path:
    arguments, classes = timm_arguments(facts), json.loads(facts["classes"])
    size = arguments["img_size"]
    config = {
        "architecture": "vit_base_patch16_224",
        "num_classes": len(classes),
        "num_features": arguments["embed_dim"],
        "global_pool": arguments["global_pool"],
        "label_names": classes,
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "usfmae",
            "input_size": [3, size, size],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": json.loads(facts["mean"]),
            "std": json.loads(facts["std"]),
            "num_classes": len(classes),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    write_atomic(out / "config.json", json.dumps(config, indent=2).encode())
    return out / "config.json"


@torch.no_grad()
def _onnx(tensors: Mapping[str, Tensor], facts: Mapping[str, str], out: Path) -> Path:
    needs("onnx", "onnx")
    import timm

    from usfmae.core.export.onnx import write_onnx

    arguments = timm_arguments(facts)
    model = timm.create_model("vit_base_patch16_224", pretrained=False, **arguments).eval()
    model.load_state_dict(dict(tensors))
    images = torch.zeros(2, 3, arguments["img_size"], arguments["img_size"])
    with replacing(out / "classifier.onnx") as partial:
        write_onnx(model, images, "logits", partial)
    return out / "classifier.onnx"


def card(facts: Mapping[str, str], target: str) -> str:
    """What the classifier is, and for whom it is not."""
    classes = json.loads(facts["classes"])
    use = {
        "timm": 'classifier = timm.create_model("local-dir:.", pretrained=True)',
        "onnx": 'session = onnxruntime.InferenceSession("classifier.onnx")',
    }[target]
    shape = "padded with black to a square" if facts["aspect"] == "keep" else "squashed to a square"
    return f"""---
library_name: {target}
pipeline_tag: image-classification
tags: [ultrasound, medical-imaging]
---

# Classifier for {facts["task"]}

Fine-tuned by usfmae on {facts["split"]}, seed {facts["seed"]}; classes in order: {", ".join(classes)}. Balanced accuracy on
the validation part that chose it: {100 * float(facts["validation"]):.1f} %. The validation part chose these weights, so
this figure is no result: `report.json` beside the run has the test parts.

```python
{use}
```

Input: RGB scaled to 0..1, {shape}, then normalised by mean {facts["mean"]} and standard deviation {facts["std"]}.

For research. It makes no diagnosis and is no medical device.
"""
