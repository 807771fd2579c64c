"""How `usfmae prepare` scales over workers, and what one worker holds in memory.

    python benchmarks/prepare.py FOLDER [--stills 150] [--clips 8] [--rounds 2] [--workers 1 2] [--json]

Runs the same evenly chosen stills and clips with each number of workers in turn, each time into a fresh corpus, and
prints images per second (median over the rounds, start of the processes included), their ratio to the first number of
workers, and the highest resident memory of a decoding process. Label masks are left out where FOLDER holds `index.csv`.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

STILLS, CLIPS = (".png", ".jpg", ".jpeg", ".bmp", ".tif"), (".mp4", ".avi", ".mov", ".mpeg", ".mpg", ".gif")


def chosen(root: Path, stills: int, clips: int) -> list[Path]:
    """Stills and clips at equal distances of the sorted list."""
    table = root / "index.csv"
    if table.exists():
        with table.open(newline="") as stream:
            paths = [root / row["path"] for row in csv.DictReader(stream) if row["kind"] != "mask"]
    else:
        paths = sorted(path for path in root.rglob("*") if path.is_file())
    picked = []
    for suffixes, count in ((STILLS, stills), (CLIPS, clips)):
        files = [path for path in sorted(paths) if path.suffix.lower() in suffixes]
        picked += [files[i * len(files) // count] for i in range(min(count, len(files)))]
    return picked


def peak_mib(pid: int) -> float:
    """The highest resident memory of a process so far; 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return float(status.split("VmHWM:")[1].split()[0]) / 1024 if "VmHWM:" in status else 0.0


def children() -> list[int]:
    """Processes that any thread of this one started."""
    tasks = Path("/proc/self/task").iterdir()
    return [
        int(pid) for task in tasks if (task / "children").exists() for pid in (task / "children").read_text().split()
    ]


class Watch:
    """The highest memory of any child while the block runs."""

    def __enter__(self) -> Watch:
        self.peak, self.over = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def _look(self) -> None:
        while not self.over.wait(0.25):
            self.peak = max([self.peak, *(peak_mib(pid) for pid in children())])

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def run(paths: list[Path], workers: int) -> tuple[dict[str, Any], float]:
    from usfmae.core.config import Settings
    from usfmae.core.prepare import Parallel, Sources, prepare

    with tempfile.TemporaryDirectory() as folder, Watch() as watch:
        summary = prepare(Sources(paths), Path(folder) / "corpus", Settings(), b"bench" * 8, Parallel(workers))
    return summary.as_dict(), watch.peak


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stills", type=int, default=150)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    paths = chosen(options.folder, options.stills, options.clips)
    rates: dict[int, list[float]] = {count: [] for count in options.workers}
    peak, counts = 0.0, {}
    for _ in range(options.rounds):
        for count in options.workers:
            counts, highest = run(paths, count)
            rates[count].append(counts["images_per_second"])
            peak = max(peak, highest)
            print(f"{count} workers: {counts['images_per_second']} images/s in {counts['seconds']} s", file=sys.stderr)
    medians = {count: statistics.median(values) for count, values in rates.items()}
    first = medians[options.workers[0]]
    values = {
        "files": len(paths),
        "frames": counts["frames"],
        "kept": counts["kept"],
        "reasons": counts["reasons"],
        "images_per_second": {str(count): round(rate, 2) for count, rate in medians.items()},
        "each": {str(count): each for count, each in rates.items()},
        "ratio": {str(count): round(rate / first, 2) for count, rate in medians.items()},
        "peak_worker_mib": round(peak),
    }
    print(json.dumps(values, indent=2) if options.json else "\n".join(f"{k:18s} {v}" for k, v in values.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
