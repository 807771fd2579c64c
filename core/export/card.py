"""The model card: what the weights are, from which data and recipe, by which line of descent, and where they end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from usfmae.core.checkpoint import Loaded
from usfmae.core.export.target import ExportOptions
from usfmae.core.files import write_atomic

TEXT = """\
{{ front }}

# Ultrasound masked autoencoder

ViT encoder {{ model.depth }} x {{ model.width }} ({{ model.heads }} heads), patch {{ model.patch_size }}, input \
{{ model.image_size }} x {{ model.image_size }}, pretrained on ultrasound by reconstructing hidden patches \
(USF-MAE; He et al. 2022). Decoder {{ model.decoder_depth }} x {{ model.decoder_width }}, \
{{ model.decoder_heads }} heads.

```python
{{ use }}
```

Input: RGB scaled to 0..1 (gray as three equal channels), then normalised by mean {{ train.mean|list }} and standard \
deviation {{ train.std|list }}.

## Data
{{ data }}

## Recipe
| setting | value |
|---|---|
{% for name, value in recipe %}| {{ name }} | {{ value }} |
{% endfor %}

## Lineage
- weights: `{{ trail.id }}`
- recipe: `{{ trail.recipe }}`
- made by usfmae {{ trail.version }}
{% for parent in trail.parents %}- made from: `{{ parent }}`
{% else %}- made from random weights
{% endfor %}

## Measured
{{ measured }}

## Limits
- A feature extractor for research. It makes no diagnosis and is no medical device.
- It has seen what its corpus held: other organs, probes, vendors and protocols may be represented badly. Validate on \
your own patients, split by patient.
- Scans were cleaned of burnt-in text and graphics before training; images with overlays are out of its distribution.
- A decoder reconstructs what it has learned, not what is there: reconstructions are no evidence of anatomy.
"""


LIBRARIES = {"hf": "transformers", "hf-mae": "transformers", "timm": "timm", "onnx": "onnxruntime", "mae": "pytorch"}


def write(loaded: Loaded, target: str, use: str, out: Path, options: ExportOptions = ExportOptions()) -> Path:
    """README.md in `out`, in the form model hubs read."""
    write_atomic(out / "README.md", text(loaded, target, use, options).encode())
    return out / "README.md"


def front_matter(loaded: Loaded, target: str, options: ExportOptions) -> str:
    """The YAML head that model hubs read. A licence nobody named is said to be unknown."""
    datasets = json.loads(loaded.metadata.get("datasets", "{}"))
    values: dict[str, Any] = {
        "library_name": LIBRARIES.get(target, "usfmae"),
        "pipeline_tag": "image-feature-extraction",
        "license": options.licence or "unknown",
        "tags": ["ultrasound", "masked-autoencoder", "self-supervised", "medical-imaging", "vit"],
    }
    if named := sorted(name for name in datasets if name):
        values["datasets"] = named
    if options.base_model:
        values["base_model"] = options.base_model
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def text(loaded: Loaded, target: str, use: str, options: ExportOptions = ExportOptions()) -> str:
    """The card as Markdown; what a checkpoint does not state is said to be unknown."""
    train, metadata = loaded.train, loaded.metadata
    recipe = {
        "preset": train.preset,
        "steps": metadata.get("step", "unknown"),
        "batch": train.batch_size,
        "mask ratio": train.mask_ratio,
        "normalised targets": train.norm_pix,
        "peak learning rate": train.lr,
        "weight decay": train.weight_decay,
        "precision": train.precision,
        "seed": train.seed,
    }
    images, datasets = metadata.get("images", "an unknown number of"), json.loads(metadata.get("datasets", "{}"))
    data = f"{images} images; corpus fingerprint `{metadata.get('corpus', 'unknown')}`."
    if datasets:
        data += "\n\n| data set | images |\n|---|---|\n"
        data += "\n".join(f"| {name or '(unnamed)'} | {count} |" for name, count in sorted(datasets.items()))
    loss = metadata.get("held_out_loss")
    measured = f"Masked error on held-out groups: {loss}" if loss else "Nothing is recorded in this checkpoint."
    if loss and "held_out_variance" in metadata:
        measured += f" (variance of the same images: {metadata['held_out_variance']})"
    template = Environment(undefined=StrictUndefined, autoescape=False, trim_blocks=True).from_string(TEXT)  # noqa: S701
    return template.render(
        front=front_matter(loaded, target, options),
        model=loaded.model,
        train=train,
        use=use,
        recipe=recipe.items(),
        trail=loaded.trail,
        data=data,
        measured=measured,
    )
