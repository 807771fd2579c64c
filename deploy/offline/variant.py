"""The pinned requirements of a variant: `cuda` is the lock file, `cpu` leaves NVIDIA's libraries and triton out."""

from __future__ import annotations

import re
import sys
from pathlib import Path

GPU_ONLY = re.compile(r"(nvidia-|cuda-|triton(?![a-z]))", re.IGNORECASE)


def chosen(variant: str, lock: str) -> str:
    """Lines of a lock file for `cuda` or `cpu`. ValueError for any other variant."""
    if variant not in ("cuda", "cpu"):
        raise ValueError(f"variant {variant!r} is neither cuda nor cpu")
    lines = [line for line in lock.splitlines() if line.strip() and not line.startswith("#")]
    return "\n".join(line for line in lines if variant == "cuda" or not GPU_ONLY.match(line)) + "\n"


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(chosen(sys.argv[1], Path(sys.argv[2]).read_text()))
