"""Every pixel encoding that is read, as one generated matrix: each frame compared with what was written and with others.

    python benchmarks/decoders.py [--json]

DICOM: photometric interpretation x transfer syntax x one frame or three x bits x planar configuration x VR of the pixels.
Volumes: format x sample type x byte order x packing. Clips: the streams of the tests, progressive and interlaced. A cell is
*equal* where every frame equals the truth and no independent decoder that reads the truth too says otherwise, *refused*
where reading ends by a named reason, else *wrong* (target 0). Independent are GDCM through SimpleITK, pydicom's own
pixel handlers, and the ffmpeg program; how many of them confirm a cell is printed. Exit code 1 where a cell is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from decoders_cells import Array, Cell, clip_cells, dicom_cells, volume_cells
from decoders_packed import fragment_cells, packed_cells

from usfmae.core.config.read import ReadSettings
from usfmae.core.read import RefusedScan, Unreadable, identify, read
from usfmae.core.read.discover import Candidate, Identified

# Judging ------------------------------------------------------------------------------------------------------


def ours(path: Path) -> tuple[Array, dict[int, str]] | str:
    """Frames and failed ones, or the reason why the file is refused."""
    settings = ReadSettings(fps=1000)
    scan = identify(Candidate.of(path), b"k" * 32, settings)
    if not isinstance(scan, Identified):
        return str(getattr(scan, "reason", "no scan"))
    failed: dict[int, str] = {}
    try:
        return np.stack([frame.pixels for frame in read(scan.scan, settings, None, failed)]), failed
    except (Unreadable, RefusedScan) as error:
        return error.reason


def same(got: Array, truth: Array, tolerance: int) -> bool:
    return got.shape == truth.shape and int(np.abs(got.astype(np.int64) - truth).max()) <= tolerance


def judged(cell: Cell) -> tuple[str, int]:
    """("equal" | "wrong" | a reason, independent decoders that confirm the truth)."""
    confirming = 0
    for other in cell.others:
        try:
            confirming += same(other(cell.path), cell.truth, max(cell.tolerance, 1))
        except Exception:  # it does not read this cell
            continue
    got = ours(cell.path)
    if isinstance(got, str):
        return got, confirming
    pictures, failed = got
    return ("equal" if not failed and same(pictures, cell.truth, cell.tolerance) else "wrong"), confirming


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    ends: Counter[str] = Counter()
    confirmed: Counter[int] = Counter()
    refused: dict[str, Counter[str]] = {}
    alone: Counter[str] = Counter()
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        cells = dicom_cells(place), packed_cells(place), fragment_cells(place), volume_cells(place), clip_cells()
        for cell in itertools.chain(*cells):
            end, confirming = judged(cell)
            ends[end] += 1
            confirmed[confirming] += 1
            if end == "wrong":
                wrong.append(cell.name)
            elif end != "equal":
                refused.setdefault(end, Counter())[cell.name.partition(":")[0]] += 1
            if not confirming:
                alone[cell.name.partition(":")[0]] += 1
    values = {
        "tried": sum(ends.values()),
        "equal": ends["equal"],
        "refused": {reason: dict(cells) for reason, cells in sorted(refused.items())},
        "wrong": wrong,
        "confirmed_by_none": dict(alone),
        "confirmed_by_independent_decoders": {str(count): cells for count, cells in sorted(confirmed.items())},
    }
    print(json.dumps(values, indent=2) if options.json else "\n".join(f"{k:34s} {v}" for k, v in values.items()))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
