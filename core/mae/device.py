"""What differs between devices, in one place: number types and kernels are chosen by what is fast there."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usfmae.core.config import TrainSettings

MICRO_BATCH = {"cpu": 12, "gpu": 256}  # where the settings say nothing


@lru_cache
def multiplies_bf16(kind: str) -> bool:
    """Whether a `cuda` or `cpu` multiplies bf16 faster than fp32: GPUs since Ampere do, and x86 CPUs with AMX.

    Older ones (V100, T4; AVX-512 alone) are slower with it than without.
    """
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return True
    facts = Path("/proc/cpuinfo")
    return facts.exists() and "amx_bf16" in facts.read_text()


def computed(precision: str, kind: str) -> str:
    """The type that products are really computed in where `precision` is asked for."""
    return "bf16" if precision == "bf16" and multiplies_bf16(kind) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast where it is asked for and pays."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computed(precision, device.type) == "bf16")


def micro_batch(settings: TrainSettings, device: torch.device) -> int:
    """Images per pass: as the settings say, else few on a CPU, whose caches they should fit, and many on a GPU."""
    return settings.micro_batch or (MICRO_BATCH["cpu"] if device.type == "cpu" else MICRO_BATCH["gpu"])


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention, each (B, H, N, d) -> (B, H, N, d)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # The backward of bf16 SDPA on CPU is 2 to 6 times slower than the same sums written out.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, N, N)
        mixed: Tensor = scores.softmax(dim=-1) @ v
        return mixed
    return F.scaled_dot_product_attention(q, k, v)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def out_of_memory(error: BaseException) -> bool:
    """Whether memory is full, of whichever device: PyTorch has an error of its own for a GPU's alone."""
    kinds = torch.OutOfMemoryError, MemoryError
    return isinstance(error, kinds) or any(text in str(error) for text in ("allocate memory", "ALLOC_FAILED"))
