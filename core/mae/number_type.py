"""Which number type a CPU multiplies faster, by measurement: flags name instructions, not how fast they are.

Measured once a machine, in about a second, at the width of the model, and kept in a file: a run and a site compute in
the same type to their end, since another would give other bits.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.files import write_atomic
from usfmae.core.mae import device

SMALLEST = 256  # width from which products decide; below, the casts to bf16 cost more than it saves
MARGIN = 1.15  # by which bf16 has to be faster: a tie stays with the exact type
TURNS = 5  # times that each type is measured, in turn; the best counts, as other programs may be at work
TOKENS = 592  # rows of a product: four images with 147 visible patches and a class token


@dataclass(frozen=True)
class NumberType:
    """The type that was chosen, and why."""

    chosen: str  # "bf16" or "fp32"
    why: str
    machine: str = ""  # processor, PyTorch and threads that were measured
    width: int = 0
    fp32_ms: float | None = None  # forward, and both products of the backward pass, of one layer
    bf16_ms: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.fp32_ms / self.bf16_ms if self.fp32_ms and self.bf16_ms else None


def machine() -> str:
    """The processor by its own name, PyTorch's version and the threads in use."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, PyTorch {torch.__version__}, {torch.get_num_threads()} thread(s)"


def number_type(model: ModelSettings, settings: TrainSettings, kind: str, file: Path | None = None) -> NumberType:
    """What products are computed in on a `kind` of device; a measurement of this machine in `file` counts."""
    if settings.precision == "fp32":
        return NumberType("fp32", "train.precision asks for it")
    if kind != "cpu":
        chosen = device.computed("bf16", kind)
        return NumberType(chosen, f"what a {kind} device of this kind multiplies fast")
    if model.width < SMALLEST:
        return NumberType(
            device.computed("bf16", kind), f"the model is narrower than {SMALLEST}: by the processor's flags"
        )
    kept = _read(file) if file else None
    if kept and (kept.machine, kept.width) == (machine(), model.width):
        return kept
    result = measured(model.width)
    if file:
        write_atomic(file, json.dumps(asdict(result), indent=2).encode())
    return result


def measured(width: int) -> NumberType:
    """One layer's three products, forward and backward, in both types in turn."""
    x, weight = torch.randn(TOKENS, width), torch.randn(4 * width, width)
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for turn in range(TURNS + 1):
        for kind in best:
            seconds = _seconds(x.to(kind), weight.to(kind))
            if turn:  # the first product of a type also loads its kernels
                best[kind] = min(best[kind], seconds)
    fp32, bf16 = best[torch.float32], best[torch.bfloat16]
    chosen = "bf16" if fp32 > MARGIN * bf16 else "fp32"
    why = f"three products in bf16 are {fp32 / bf16:.2f} times as fast as in fp32; bf16 from {MARGIN}"
    return NumberType(chosen, why, machine(), width, round(1000 * fp32, 3), round(1000 * bf16, 3))


def _seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    began = time.perf_counter()
    y = F.linear(x, weight)
    _ = y @ weight, y.T @ x
    return time.perf_counter() - began


def _read(file: Path) -> NumberType | None:
    try:
        stored = NumberType(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return stored if stored.chosen in ("bf16", "fp32") else None


@contextmanager
def computing_in(chosen: str) -> Iterator[None]:
    """Meanwhile this process computes bf16 on its CPU, or does not."""
    before = dict(device.settled)
    device.settled["cpu"] = chosen == "bf16"
    try:
        yield
    finally:
        device.settled.clear()
        device.settled.update(before)
