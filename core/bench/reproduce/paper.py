"""Table 2 of the USF-MAE paper (arXiv 2510.22990), as far as it can be stated, and what each figure is.

BUS-BRA: fold 1 of the official file. The only test set below 700 images that reproduces the twelve rounded figures of
the four models has 122 malignant images; fold 1 alone has. The confusion counts follow uniquely and are given here.
MMOTU-2D and GIST514-DB: the F1 of the abstract; no confusion matrix fits, so they are averages of several runs.
UltraSam's figures are macro averages (mmpretrain's default) beside positive-class and micro averages of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from usfmae.core.bench.metrics import view

# What a model of the table is here; then the controls and floors that the table lacks.
SHOWN = {
    "timm:vgg19.tv_in1k": "VGG-19",
    "timm:resnet50.tv_in1k": "ResNet-50",
    "timm:vit_base_patch16_224.augreg_in1k": "ViT-B/16",
    "ultrasam": "UltraSam",
    "pretrained": "USF-MAE",
    "timm:vit_base_patch16_224.mae": "ViT-B/16, ImageNet MAE",
    "timm:vit_base_patch14_dinov2.lvd142m": "ViT-B/14, DINOv2",
    "efficientnet-lite0": "EfficientNet-Lite0",
    "random": "random weights",
    "pixels": "raw pixels",
}


def shown(spec: str) -> str:
    """A model's name for people: the paper's where it has one."""
    return SHOWN.get("ultrasam" if spec.startswith("ultrasam:") else spec, spec)


@dataclass(frozen=True)
class Published:
    """One published row, in per cent; None where the published figure is not of this view."""

    task: str
    model: str
    paper_f1: float | None
    ultrasam_f1: float | None
    basis: str


# (true positives, false negatives, false positives) among 122 malignant and 254 benign images.
BUS_BRA_COUNTS = {
    "VGG-19": (62, 60, 40),
    "ResNet-50": (94, 28, 42),
    "ViT-B/16": (80, 42, 32),
    "USF-MAE": (100, 22, 23),
}


def bus_bra_row(model: str) -> dict[str, float]:
    """Precision, recall, F1 of the malignant class and macro F1, in per cent, from the recovered counts."""
    tp, fn, fp = BUS_BRA_COUNTS[model]
    counts = np.array([[254 - fp, fp], [fn, tp]], float)
    paper, macro = view(counts, "paper", 1), view(counts, "ultrasam", 1)
    return {
        **{name: round(100 * float(paper[name]), 1) for name in ("precision", "recall", "f1")},
        "macro_f1": round(100 * float(macro["f1"]), 1),
    }


def table_2() -> list[Published]:
    """Every published figure that is known, each in the view it belongs to."""
    rows = []
    for model in BUS_BRA_COUNTS:
        row = bus_bra_row(model)
        rows.append(Published("bus-bra", model, row["f1"], row["macro_f1"], "recovered counts of fold 1"))
    return [
        *rows,
        Published("bus-bra", "UltraSam", None, 87.5, "macro, as UltraSam reports"),
        Published("mmotu-2d", "USF-MAE", 79.6, None, "micro average; no k of 469 gives it, so an average of runs"),
        Published("mmotu-2d", "UltraSam", None, 62.0, "macro, as UltraSam reports"),
        Published("gist514", "USF-MAE", 82.4, None, "positive class, average of folds"),
    ]
