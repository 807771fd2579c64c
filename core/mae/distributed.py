"""Several processes that train as one, as `torchrun` starts them: who is who, and what all of them must agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from usfmae.core.errors import UsageError


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
