"""Mutations of real files through the reader: every one must end as kept, quarantined, refused or ignored.

    python benchmarks/fuzz.py FOLDER [--mutations 10000] [--seed 0] [--workers 2] [--clean-every 20] [--json]

Each mutated file is identified and read by the same supervised processes as in `usfmae prepare`. Every N-th is also
cleaned, by the real cleaner; in the others a frame that decodes counts as kept. Prints the counts, the reasons, the
slowest file and the highest memory of a decoding process. Exit code 1 where an outcome is missing, where reading one
file took more than HANG seconds, or where a process held more than its memory limit.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

LARGEST = 500_000  # bytes of a file that is mutated
HANG = 31.0  # seconds: the limit of one frame, and the end of the process that broke it
MEMORY_MIB = 4096  # `read.memory_mb`
CLIPS = (".mp4", ".avi", ".mov", ".mpeg")
ZEROS = 100_000_000  # bytes a bomb unpacks to

Mutation = Callable[[bytearray, random.Random], bytes]


def truncated(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: rng.randrange(len(data))])


def flipped(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 3, 10, 100))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def flipped_header(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 3, 10))):
        data[rng.randrange(min(len(data), 2048))] ^= 1 << rng.randrange(8)
    return bytes(data)


def extreme(data: bytearray, rng: random.Random) -> bytes:
    """A length or size field of the header set to an edge value: the decompression bombs are among these."""
    width = rng.choice((2, 4))
    value = rng.choice((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)) & ((1 << 8 * width) - 1)
    at = rng.randrange(max(1, min(len(data), 4096) - width))
    data[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
    return bytes(data)


def overwritten(data: bytearray, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(data)), rng.choice((8, 64, 1024))
    data[at : at + length] = rng.randbytes(length)
    return bytes(data)


def repeated(data: bytearray, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(data)), rng.choice((16, 256, 4096))
    return bytes(data[:at] + data[at : at + length] * rng.choice((2, 20)) + data[at:])


def removed(data: bytearray, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(data)), rng.choice((1, 16, 1024))
    return bytes(data[:at] + data[at + length :])


def emptied(data: bytearray, rng: random.Random) -> bytes:
    return b"" if rng.random() < 0.5 else bytes(rng.randrange(1, 5000))


@lru_cache(maxsize=1)
def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("IM1.dcm", "w", force_zip64=True) as member,
    ):
        for _ in range(ZEROS // 1_000_000):
            member.write(bytes(1_000_000))
    return buffer.getvalue()


@lru_cache(maxsize=1)
def volume_bomb() -> bytes:
    """A NIfTI of zeros, compressed a thousandfold, that claims the size it has."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 1000, 1000, ZEROS // 1_000_000, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 2, 8)  # unsigned 8 bits
    struct.pack_into("<2f", header, 108, 352.0, 1.0)
    header[344:348] = b"n+1\0"
    return gzip.compress(bytes(header) + bytes(ZEROS), 6)


def bomb(data: bytearray, rng: random.Random) -> bytes:
    """Little that unpacks to much, or claims to: an archive, a volume, a sound PNG header of a huge picture."""
    kind = rng.randrange(100)
    if kind < 2:
        return (zip_bomb, volume_bomb)[kind]()
    sides = rng.choice((8_001, 60_000, 2**31 - 1)), rng.choice((8_000, 60_000, 2**31 - 1))
    chunk = b"IHDR" + struct.pack(">2I5B", *sides, rng.choice((8, 16)), rng.choice((0, 2)), 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(bytes(1_000_000))
    png = b"\x89PNG\r\n\x1a\n"
    for body in (chunk, pixels, b"IEND"):
        png += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png


def zipped(data: bytearray, rng: random.Random) -> bytes:
    """An archive with this file in it, itself damaged or holding another archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("DICOM/IM1", bytes(data))
    if rng.random() < 0.5:
        return flipped(bytearray(buffer.getvalue()), rng)
    nested = io.BytesIO()
    with zipfile.ZipFile(nested, "w") as archive:
        archive.writestr("inner.zip", buffer.getvalue())
        archive.writestr("zeros.dcm", bytes(1_000_000))
    return nested.getvalue()


MUTATIONS: dict[str, Mutation] = {
    function.__name__: function
    for function in (
        truncated, flipped, flipped, flipped_header, flipped_header, extreme, extreme, overwritten, repeated,
        removed, emptied, zipped, bomb,
    )
}  # fmt: skip
SUFFIXES = ("", "", "", ".dcm", ".png", ".mp4", ".mha", ".nii.gz", ".gif")  # often not the right one


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


def mutated(sources: list[Path], count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """(mutation, suffix, bytes), the same for the same seed and sources."""
    rng = random.Random(seed)
    names = list(MUTATIONS)
    for _ in range(count):
        path = rng.choice(sources)
        name = rng.choice(names)
        suffix = path.suffix if rng.random() < 0.7 else rng.choice(SUFFIXES)
        yield name, suffix, MUTATIONS[name](bytearray(path.read_bytes()), rng)


def evenly(paths: list[Path]) -> list[Path]:
    """40 picks of each suffix, so that thousands of PNGs do not crowd out the DICOMs; 10 of clips, which take long."""
    by_suffix: dict[str, list[Path]] = {}
    for path in paths:
        by_suffix.setdefault(path.suffix.lower(), []).append(path)
    picks = {suffix: 10 if suffix in CLIPS else 40 for suffix in by_suffix}
    return [group[i * len(group) // picks[suffix]] for suffix, group in by_suffix.items() for i in range(picks[suffix])]


def outcome_of(worker: Any, path: Path, secret: bytes) -> tuple[str, list[str], int]:
    """("kept" | "quarantined" | "refused" | "ignored" | "failed", reasons, frames) of one file."""
    from usfmae.core.flow import Scan, Trail
    from usfmae.core.prepare.worker import Unit
    from usfmae.core.read.discover import Candidate, is_archive, member_candidates

    whole = Candidate(path.absolute())
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
    from usfmae.core.prepare import worker as worker_module
    from usfmae.core.prepare.pool import Pool

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
    from usfmae.core.flow import CleanImage, Frame
    from usfmae.core.prepare import process

    def untouched(frame: Frame, settings: Any) -> CleanImage:
        return CleanImage(frame.pixels, np.zeros(frame.pixels.shape[:2], bool), frame.trail)

    clean.clean = untouched  # type: ignore[assignment]
    clean.clean_clip = lambda frames, settings: (untouched(f, settings) for f in frames)  # type: ignore[assignment]
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
