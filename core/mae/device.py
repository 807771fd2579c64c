"""Where a model is trained and in which numbers, and several processes that train as one, as `torchrun` starts them."""

from __future__ import annotations

import importlib.util
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.errors import UsageError

UNREAD = 20  # steps on a GPU between two looks at losses
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


settled: dict[str, bool] = {}  # kind of device -> whether bf16 is computed, where it was measured


def computed(precision: str, kind: str) -> str:
    """The type that products are really computed in where `precision` is asked for: as measured, else by flags."""
    fast = settled[kind] if kind in settled else multiplies_bf16(kind)
    return "bf16" if precision == "bf16" and fast else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast where it is asked for and pays."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computed(precision, device.type) == "bf16")


def micro_batch(settings: TrainSettings, device: torch.device) -> int:
    """Images per pass: as the settings say, else few on a CPU, whose caches they should fit, and many on a GPU."""
    return settings.micro_batch or (MICRO_BATCH["cpu"] if device.type == "cpu" else MICRO_BATCH["gpu"])


def augments(settings: TrainSettings, device: torch.device) -> bool:
    """Whether images are augmented on the device: on a GPU, unless torchvision's own steps are asked for bit by bit."""
    return device.type == "cuda" and settings.augment.crop == "zoom"


def steps_unread(settings: TrainSettings, device: torch.device) -> int:
    """How many steps may pass before losses are read back: reading one makes the host wait for the device."""
    return UNREAD if device.type == "cuda" and settings.optimizer == "adamw" else 1


def compiles(settings: TrainSettings, device: torch.device) -> bool:
    """Whether the model is compiled: where it is asked for, and on a GPU where Triton is there to do it."""
    return settings.compile or (device.type == "cuda" and importlib.util.find_spec("triton") is not None)


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


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the other processes where torchrun started this one; yields the device that is this process's own.

    Raises UsageError where there are more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield device
        return
    if device.startswith("cuda"):
        number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= count:
            raise UsageError(f"process {number + 1} here", f"this machine shows {count} GPU(s)", "start one for each")
        device = f"cuda:{number}"
        torch.cuda.set_device(number)  # before NCCL, which would else put every process on the first GPU
        dist.init_process_group("nccl", device_id=torch.device(device))
    else:
        dist.init_process_group("gloo")
    yield device
    # Not after an error: the others may wait inside a collective, and torchrun ends them when this process ends.
    dist.destroy_process_group()


def ranks() -> tuple[int, int]:
    """(this process, all processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def anyone(flag: bool, device: torch.device) -> bool:
    """True in every process as soon as it is in one."""
    return _largest(float(flag), device) > 0


def strongest(wish: int, device: torch.device) -> int:
    """The largest wish of all processes, so that all of them do the same after the same step."""
    return int(_largest(wish, device))


def same_everywhere(step: int, device: torch.device) -> int:
    """The step, where every process found the same one to go on from; they would wait for each other for ever else."""
    most, least = int(_largest(step, device)), -int(_largest(-step, device))
    if most != least:
        raise UsageError(
            f"checkpoints of step {least} and {most}",
            "the processes see different ones",
            "put the folder of the run where all machines see it",
        )
    return step


def _largest(value: float, device: torch.device) -> float:
    if ranks()[1] == 1:
        return value
    largest = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return float(largest)
