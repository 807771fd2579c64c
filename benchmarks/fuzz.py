"""Mutations of real files through the reader: every one must end as kept, quarantined, refused or ignored.

    python benchmarks/fuzz.py FOLDER [--mutations 10000] [--seed 0] [--workers 2] [--clean-every 20] [--json]

Each mutated file is identified and read by the same supervised processes as in `usfmae prepare`. Every N-th is also
cleaned, by the real cleaner; in the others a frame that decodes counts as kept. Prints the counts, the reasons, the
slowest file and the highest memory of a decoding process. Exit code 1 where an outcome is missing, where reading one
file took more than HANG seconds, or where a process held more than its memory limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz_mutations import mutated

LARGEST = 500_000  # bytes of a file that is mutated
HANG = 31.0  # seconds: the limit of one frame, and the end of the process that broke it
MEMORY_MIB = 4096  # `read.memory_mb`
CLIPS = (".mp4", ".avi", ".mov", ".mpeg")


@dataclass
class Counts:
    mutations: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    by_mutation: dict[str, Counter[str]] = field(default_factory=dict)
    frames: int = 0
    cleaned: int = 0  # mutations that went through the real cleaner
    slowest_read: float = 0.0  # seconds, without cleaning
    slowest_cleaned: float = 0.0
    peak_mib: float = 0.0


def evenly(paths: list[Path]) -> list[Path]:
    """40 picks of each suffix, so that thousands of PNGs do not crowd out the DICOMs; 10 of clips, which take long."""
    by_suffix: dict[str, list[Path]] = {}
    for path in paths:
        by_suffix.setdefault(path.suffix.lower(), []).append(path)
    picks = {suffix: 10 if suffix in CLIPS else 40 for suffix in by_suffix}
    return [group[i * len(group) // picks[suffix]] for suffix, group in by_suffix.items() for i in range(picks[suffix])]


def outcome_of(worker: Any, path: Path, secret: bytes) -> tuple[str, list[str], int]:
    """("kept" | "quarantined" | "refused" | "ignored" | "failed", reasons, frames) of one file."""
    from usfmae.core.read.discover import Candidate, is_archive, member_candidates
    from usfmae.core.sandbox.records import Unit
    from usfmae.core.types import Scan, Trail

    whole = Candidate.of(path.absolute())
    candidates, reasons, frames, ends = [whole], [], 0, set()
    if is_archive(whole):
        answer = worker.members(whole)
        candidates = list(member_candidates(whole, answer["members"]))
        if answer.get("reason"):
            reasons, ends = [answer["reason"]], {"quarantined"}
    for candidate in candidates:
        answer = worker.identify(candidate)
        if answer["outcome"] != "scan":
            ends.add({"none": "ignored"}.get(answer["outcome"], answer["outcome"]))
            reasons += [answer["reason"]] if "reason" in answer else []
            continue
        scan = Scan(candidate.path, answer["kind"], Trail(answer["id"]), candidate.member, answer["group"])
        (result,), _ = worker.process_unit(Unit((scan,), answer["planned"] > 1))
        frames += result.frames
        reasons += [*result.quarantined, *([result.reason] if result.reason else [])]
        ends.add("kept" if result.kept else "quarantined" if result.outcome == "read" else result.outcome)
    for end in ("kept", "failed", "quarantined", "refused", "ignored"):
        if end in ends:
            return end, reasons, frames
    return "ignored", reasons, frames  # an archive of nothing


def peak_mib(worker: Any) -> float:
    if worker.process is None:
        return 0.0
    try:
        status = Path(f"/proc/{worker.process.pid}/status").read_text()
    except OSError:
        return 0.0
    return float(status.split("VmHWM:")[1].split()[0]) / 1024 if "VmHWM:" in status else 0.0


def fuzz(sources: list[Path], count: int, seed: int, workers: int, clean_every: int, keep: Path | None) -> Counts:
    from usfmae.core.config import Settings
    from usfmae.core.sandbox import worker as worker_module
    from usfmae.core.sandbox.pool import Pool

    counts = Counts()
    secret = b"fuzz" * 8
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:

        def one(worker: Any, item: tuple[int, tuple[str, str, bytes]]) -> tuple[str, list[str], int, float, float]:
            number, (_, suffix, data) = item
            path = Path(folder) / f"{number:06d}{suffix}"
            path.write_bytes(data)
            began = time.monotonic()
            end, reasons, frames = outcome_of(worker, path, secret)
            if keep and {"crashed", "timeout", "too-much-memory"} & set(reasons):
                (keep / path.name).write_bytes(data)
            path.unlink()
            return end, reasons, frames, time.monotonic() - began, peak_mib(worker)

        def run(items: list[tuple[int, tuple[str, str, bytes]]], command: tuple[str, ...]) -> None:
            worker_module.COMMAND = command
            with Pool(workers, Settings(), secret) as pool:
                for (_, (name, _, _)), (end, reasons, frames, seconds, peak) in pool.map(one, iter(items)):
                    counts.mutations += 1
                    counts.outcomes[end] += 1
                    counts.reasons.update(reasons)
                    counts.by_mutation.setdefault(name, Counter())[end] += 1
                    counts.frames += frames
                    counts.peak_mib = max(counts.peak_mib, peak)
                    if command is full:
                        counts.cleaned += 1
                        counts.slowest_cleaned = max(counts.slowest_cleaned, seconds)
                    else:
                        counts.slowest_read = max(counts.slowest_read, seconds)

        full = worker_module.COMMAND
        read_only = (sys.executable, str(Path(__file__).absolute()), "--child")
        batch: list[tuple[int, tuple[str, str, bytes]]] = []
        everything = enumerate(mutated(sources, count, seed))
        cleaned = []
        for number, item in everything:
            (cleaned if clean_every and number % clean_every == 0 else batch).append((number, item))
            if len(batch) == 500:
                run(batch, read_only)
                batch = []
                print(f"{counts.mutations} of {count}: {dict(counts.outcomes)}", file=sys.stderr)
        run(batch, read_only)
        run(cleaned, full)
    return counts


def child() -> None:
    """The decoding process with cleaning left out: every frame that decodes counts as kept."""
    import numpy as np

    from usfmae.core import clean
    from usfmae.core.sandbox import child as process
    from usfmae.core.types import CleanImage, Frame

    def untouched(frame: Frame, settings: Any) -> CleanImage:
        return CleanImage(frame.pixels, np.zeros(frame.pixels.shape[:2], bool), frame.trail)

    clean.clean = untouched  # type: ignore[assignment]
    clean.clean_clip = lambda frames, settings, beat: (untouched(f, settings) for f in frames)  # type: ignore[assignment]
    process.main()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clean-every", type=int, default=20)
    parser.add_argument("--keep", type=Path, help="folder for files that end, hang or fill a decoding process")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    paths = sorted(
        p for p in options.folder.rglob("*")
        if p.is_file() and p.stat().st_size <= LARGEST and p.suffix not in (".md", ".csv", ".txt", ".yaml")
    )  # fmt: skip
    began = time.monotonic()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    counts = fuzz(evenly(paths), options.mutations, options.seed, options.workers, options.clean_every, options.keep)
    values = {
        "mutations": counts.mutations,
        **{end: counts.outcomes[end] for end in ("kept", "quarantined", "refused", "ignored", "failed")},
        "reasons": dict(counts.reasons.most_common()),
        "by_mutation": {name: dict(ends) for name, ends in sorted(counts.by_mutation.items())},
        "frames": counts.frames,
        "cleaned": counts.cleaned,
        "slowest_read_seconds": round(counts.slowest_read, 2),
        "slowest_cleaned_seconds": round(counts.slowest_cleaned, 2),
        "peak_worker_mib": round(counts.peak_mib),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(values, indent=2) if options.json else "\n".join(f"{k:16s} {v}" for k, v in values.items()))
    sound = counts.mutations == options.mutations == sum(counts.outcomes.values()) and not counts.outcomes["failed"]
    return 0 if sound and counts.slowest_read <= HANG and counts.peak_mib < MEMORY_MIB else 1


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        child()
    else:
        sys.exit(main())
