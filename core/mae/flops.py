"""Work and limits: how many operations a training image needs, and how many a device could do.

MFU, model FLOP utilisation (Chowdhery et al. 2022, arXiv 2204.02311) = images/s * operations / peak.
"""

from __future__ import annotations

import time
from functools import lru_cache

import torch

from usfmae.core.config import ModelSettings
from usfmae.core.mae.device import computed

# Dense bf16 products with fp32 accumulation, operations per second, from the makers' data sheets.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "4090": 165e12,
    "4080 SUPER": 104e12,
}


def training_flops(model: ModelSettings, mask_ratio: float) -> float:
    """Floating-point operations of one image's forward and backward pass (products only, backward = 2 forwards)."""
    patches = (model.image_size // model.patch_size) ** 2
    visible, pixels = int(patches * (1 - mask_ratio)), 3 * model.patch_size**2

    def blocks(depth: int, width: int, tokens: int) -> float:
        return depth * (24 * tokens * width**2 + 4 * tokens**2 * width)

    forward = (
        2 * visible * pixels * model.width
        + blocks(model.depth, model.width, visible + 1)
        + 2 * (visible + 1) * model.width * model.decoder_width
        + blocks(model.decoder_depth, model.decoder_width, patches + 1)
        + 2 * patches * model.decoder_width * pixels
    )
    return 3.0 * forward


@lru_cache(maxsize=4)
def peak_flops(device: str, precision: str) -> float | None:
    """Peak operations per second: the data sheet's for a known GPU, measured on a CPU, else None.

    precision: what is asked for; on a CPU that computes in fp32 instead, fp32's peak.
    """
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
        return next((peak for part, peak in PEAKS.items() if part in name), None) if precision == "bf16" else None
    if device != "cpu":
        return None
    side = 2048  # smaller products stay below what a step reaches
    left = torch.ones(side, side, dtype=torch.bfloat16 if computed(precision, device) == "bf16" else torch.float32)
    left @ left  # the first product also loads kernels
    best = min(_seconds(left) for _ in range(10))  # the best, as other programs may be at work
    return 2.0 * side**3 / best


def _seconds(x: torch.Tensor) -> float:
    began = time.perf_counter()
    x @ x
    return time.perf_counter() - began
