"""The benchmarks: one file each with `load(root, seed) -> BenchmarkTask`, and one row here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from usfmae.core.errors import SourceError, UsageError, needs

if TYPE_CHECKING:
    from usfmae.core.bench.tasks.base import BenchmarkTask


@dataclass(frozen=True)
class Benchmark:
    module: str
    dataset: str = ""  # its id in OpenUS-46's registry: a benchmark of `reproduce`; "" for one that is not in it


BENCHMARKS = {
    "bus-bra": Benchmark("usfmae.core.bench.tasks.bus_bra", "bus_bra"),
    "mmotu-2d": Benchmark("usfmae.core.bench.tasks.mmotu", "mmotu_2d"),
    "gist514": Benchmark("usfmae.core.bench.tasks.gist514", "gist514"),
    "ultrabench": Benchmark("usfmae.core.bench.tasks.ultrabench"),
    "folder": Benchmark("usfmae.core.bench.tasks.folder"),
}


def load(name: str, root: Path, seed: int = 42) -> BenchmarkTask:
    """A benchmark by name from a folder or zip, checked. Raises UsageError, SourceError or ResourceError."""
    needs("sklearn", "bench")
    from usfmae.core.bench.tasks.base import checked

    if name not in BENCHMARKS:
        raise UsageError(f"task {name}", "is not known", f"choose one of {', '.join(BENCHMARKS)}")
    if not root.exists():
        raise SourceError(f"data of {name}: {root}", "does not exist", "give the folder or zip of the data set")
    task: BenchmarkTask = importlib.import_module(BENCHMARKS[name].module).load(root, seed)
    return checked(task)
