"""Scores cleaning on drawn and on real overlays: what stays readable, what tissue is harmed, how fast.

    python benchmarks/clean.py --json [--data DIR] [--parts DIR] [--half all|both|scoring|tuning|fresh] [--limit N]
                               [--kinds drawn,real] [--profiles safe,paper] [--workers N] [--whole]
    python benchmarks/clean.py --half scoring --parts DIR --only safe-3        one part and no table, to share the work

Drawn: synthetic overlays over real clean scans. The work is cut into parts of about 33 annotated pictures, 38 clean
stills and 8 clean clips, each with a seed of its own and about a minute of one core. Tuning half, scoring half and the
fresh part, whose data sets and type faces neither half holds, stand apart (`both`: without the tuning half): two parts
for the safe profile and one for the paper profile of a half, one and one of the fresh part; with --whole ten and two,
three and one. Real: pictures that a person labelled (`labelled.py`), tuning and scoring apart. Parts and rows that lie
in DIR are not computed again, so a run that was cut off goes on. --limit takes the first N pictures of every kind.
Speed is measured last, on the scoring half.

Strings that the reader cannot read before cleaning do not count. Strings of quarantined frames do not leak and count
as unreadable; how many annotated frames that concerns is printed beside. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_THREAD_LIMIT", "1")

import cv2
import numpy as np
import overlays
import scans
from attack import readable
from clean_speed import speed
from labelled import real_tables, tissue_of
from numpy.typing import NDArray

from usfmae.core.clean import clean, clean_clip
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import CleanImage, Frame, Quarantined

Pixels = NDArray[np.uint8]

KINDS = {"outside": "outside", "tissue": "tissue", "low": "low"}


@dataclass
class Size:
    """How much one part measures."""

    strings_outside: int = 300
    strings_tissue: int = 100
    clean_stills: int = 38
    clips: int = 8
    annotated: int = 1000  # pictures at most

    def at_most(self, limit: int | None) -> Size:
        """As this, for a short run."""
        if limit is None:
            return self
        return replace(self, annotated=limit, clean_stills=min(self.clean_stills, limit), clips=min(self.clips, 1))


PART = {"tuning": Size(), "scoring": Size(), "fresh": Size(clean_stills=18, clips=1)}
PARTS = {
    False: {"fresh": {"safe": 1, "paper": 1}, "scoring": {"safe": 2, "paper": 1}, "tuning": {"safe": 2, "paper": 1}},
    True: {"fresh": {"safe": 3, "paper": 1}, "scoring": {"safe": 10, "paper": 2}, "tuning": {"safe": 10, "paper": 2}},
}  # with --whole or without, half, profile
TIMED_STILLS, TIMED_CLIPS = 12, 2


@dataclass
class Score:
    """Running counts of one profile."""

    strings: Counter[str] = field(default_factory=Counter)
    readable: Counter[str] = field(default_factory=Counter)
    ink: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    flow: int = 0
    flow_kept: int = 0
    changed: list[float] = field(default_factory=list)
    quarantined: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))

    def table(self) -> dict[str, Any]:
        """The keys the project promises."""
        rates = {k: sum(v) / len(v) if v else None for k, v in self.quarantined.items()}
        return {
            **{f"strings_{k}": self.strings[k] for k in KINDS},
            **{f"readable_{k}": self.readable[k] for k in KINDS},
            "recall": {k: round(self.found[k] / n, 4) for k, n in sorted(self.ink.items()) if n},
            "tissue_changed_mean": round(100 * statistics.mean(self.changed), 4) if self.changed else None,
            "tissue_changed_worst": round(100 * max(self.changed), 4) if self.changed else None,
            "flow_kept": round(self.flow_kept / self.flow, 4) if self.flow else None,
            "quarantined_stills": rates.get("stills"),
            "quarantined_clips": rates.get("clips"),
            "quarantined_annotated": rates.get("annotated"),
            "quarantine_reasons": dict(self.reasons),
        }


def doppler(root: Path, half: str) -> Pixels:
    """A screen (H, W, 3) with colour flow."""
    import pydicom

    if half == "fresh":
        return np.ascontiguousarray(cv2.imread(str(root / "mmotu_2d/images/rotated_270_1469.jpg"))[:, :, ::-1])
    name = {"tuning": "pydicom-data/color-px.dcm", "scoring": "nema/US1_RLE"}[half]
    return pydicom.dcmread(root / "dicom_us" / name).pixel_array


def flow_patches(root: Path, half: str) -> list[Pixels]:
    """Colour-flow pixels of a real Doppler frame, zero elsewhere; another device for each half."""
    pixels = doppler(root, half)
    chroma = pixels.max(2).astype(int) - pixels.min(2)
    flow = cv2.morphologyEx((chroma > 50).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    flow = cv2.morphologyEx(flow, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))  # the colour box is one or two pixels wide
    if half == "scoring":  # the colour bars at both sides are no flow
        flow[:, :60] = flow[:, -60:] = 0
    count, labels, stats, _ = cv2.connectedComponentsWithStats(flow)
    patches = []
    for i in range(1, count):
        x, y, w, h, area = stats[i]
        core = cv2.distanceTransform((labels == i).astype(np.uint8), cv2.DIST_L2, 3).max()
        if area > 120 and core > 4:  # thinner parts are the colour box and crumbs
            part = pixels[y : y + h, x : x + w] * ((labels == i) & (chroma > 50))[y : y + h, x : x + w, None]
            patches.append(np.ascontiguousarray(part))
    return patches


def annotated(root: Path, half: str, seed: int) -> Iterator[overlays.Painted]:
    """Endless annotated pictures, every fourth with colour flow; each seed begins with other scans."""
    sources, patches, number = scans.sources(root, half), flow_patches(root, half), 0
    while True:
        rng = np.random.default_rng((seed, number))
        source = sources[(33 * seed + number) % len(sources)]
        patch = patches[int(rng.integers(len(patches)))] if number % 4 == 0 else None
        yield overlays.paint(scans.still(source, rng.random()), rng, half, patch)
        number += 1


def score_annotated(
    score: Score, picture: overlays.Painted, result: CleanImage | Quarantined, were_readable: list[bool]
) -> None:
    """Book one annotated picture; `were_readable` says which of its strings the reader could read before."""
    score.frames += 1
    score.quarantined["annotated"].append(isinstance(result, Quarantined))
    for string, was_readable in zip(picture.strings, were_readable, strict=True):
        score.strings[string.kind] += was_readable
    if isinstance(result, Quarantined):
        score.reasons[result.reason] += 1
        return
    for string, was_readable in zip(picture.strings, were_readable, strict=True):
        score.readable[string.kind] += was_readable and readable(result.pixels, string)
    for kind, ink in picture.ink.items():
        score.ink[kind] += int(ink.sum())
        score.found[kind] += int((ink & result.mask).sum())
    if picture.flow is not None:
        covered = np.zeros_like(picture.flow)
        for ink in picture.ink.values():
            covered |= ink
        plain = picture.flow & ~covered
        score.flow += int(plain.sum())
        score.flow_kept += int((plain & ~result.mask).sum())


def score_clean(score: Score, pixels: Pixels, result: CleanImage | Quarantined, kind: str) -> None:
    """Book one scan without overlays: quarantined, or the share of its tissue that was changed."""
    score.quarantined[kind].append(isinstance(result, Quarantined))
    if isinstance(result, CleanImage):
        tissue = tissue_of(pixels)
        score.changed.append(float((result.mask & tissue).sum() / max(1, tissue.sum())))


def quality(root: Path, half: str, size: Size, options: CleanSettings, seed: int) -> Score:
    """Annotated pictures until there are enough strings, then clean stills, then clean clips."""
    score = Score()
    for picture in annotated(root, half, seed):
        were_readable = [readable(picture.pixels, s) for s in picture.strings]
        score_annotated(score, picture, clean(picture.pixels, options), were_readable)
        enough = score.strings["outside"] >= size.strings_outside and score.strings["tissue"] >= size.strings_tissue
        if enough or score.frames >= size.annotated:
            break
    sources = scans.sources(root, half)
    for source in some(sources, size.clean_stills, seed):
        pixels = scans.still(source)
        score_clean(score, pixels, clean(pixels, options), "stills")
    for source in some([s for s in sources if s.is_clip], size.clips, seed):
        frames = scans.frames(source, 12)
        run = [Frame(f, index=i, time=i / 3) for i, f in enumerate(frames)]
        for pixels, result in zip(frames, clean_clip(iter(run), options), strict=True):
            score_clean(score, pixels, result, "clips")
    return score


def some(sources: list[scans.Source], count: int, seed: int) -> list[scans.Source]:
    """The seed's share of the sources, round and round."""
    return [sources[i % len(sources)] for i in range(seed * count, (seed + 1) * count)]


def part(folder: Path, name: str, root: Path, half: str, limit: int | None = None) -> None:
    """Compute one part, "profile-seed", unless it lies in the folder."""
    cv2.setNumThreads(1)
    file = folder / f"{name}.json"
    if file.exists():
        return
    profile, seed = name.split("-")
    score = quality(root, half, PART[half].at_most(limit), CleanSettings(profile=profile), int(seed))
    file.with_suffix(".new").write_text(json.dumps(vars(score)))
    file.with_suffix(".new").rename(file)
    print(f"{name}: {dict(score.strings)} readable {dict(score.readable)}", file=sys.stderr)


def merged(files: list[Path]) -> Score:
    """The counts of several parts, added up."""
    score = Score()
    for file in files:
        counts = json.loads(file.read_text())
        for counter in ("strings", "readable", "ink", "found", "reasons"):
            getattr(score, counter).update(counts[counter])
        for number in ("frames", "flow", "flow_kept"):
            setattr(score, number, getattr(score, number) + counts[number])
        score.changed += counts["changed"]
        for kind, flags in counts["quarantined"].items():
            score.quarantined[kind] += flags
    return score


def timed(root: Path, half: str) -> dict[str, Any]:
    """Speed on annotated stills, and on clips each of which lies on one device screen, the same over every frame."""
    stream = annotated(root, half, 1000)
    stills = [next(stream).pixels for _ in range(TIMED_STILLS)]
    sources = [s for s in scans.sources(root, half) if s.is_clip][:TIMED_CLIPS]
    clips = [
        [overlays.paint(f, np.random.default_rng((0, 7)), half).pixels for f in scans.frames(source, 30)]
        for source in sources
    ]
    return speed(stills, clips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("USFMAE_TEST_DATA", "../shared/data")))
    parser.add_argument("--half", choices=("all", "both", "scoring", "tuning", "fresh"), default="all")
    parser.add_argument("--kinds", default="drawn,real")
    parser.add_argument("--profiles", default="safe,paper")
    parser.add_argument("--parts", type=Path, help="where the parts lie, or will lie; default: a temporary folder")
    parser.add_argument("--only", help="compute this part, such as safe-3, and stop")
    parser.add_argument("--limit", type=int, help="the first N pictures of every kind: a short run")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes; as many as there are cores")
    parser.add_argument("--whole", action="store_true", help="all parts: about a quarter of an hour of one core")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    halves = {"all": ("tuning", "scoring", "fresh"), "both": ("scoring", "fresh")}.get(options.half, (options.half,))
    with tempfile.TemporaryDirectory() as temporary:
        options.parts = options.parts or Path(temporary)
        if options.only:
            part(_folder(options, halves[0]), options.only, options.data, halves[0], options.limit)
            return
        report = measured(halves, options)
    print(json.dumps(report) if options.json else "\n".join(lines(report)))


def measured(halves: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Drawn and real overlays, each half and profile apart, and the speed."""
    start, report, kinds = time.time(), dict[str, Any](), options.kinds.split(",")
    if "real" in kinds:
        profiles = options.profiles.split(",")
        real = [half for half in halves if half != "fresh"]
        report["real"] = real_tables(options.data, options.parts, real, profiles, options.limit, options.workers)
    if "drawn" in kinds:
        report["drawn"] = {half: table_of(half, options) for half in halves}
        if "scoring" in halves and options.limit is None:
            report["timing"] = timed(options.data, "scoring")
    return report | {"seconds": round(time.time() - start)}


def _folder(options: argparse.Namespace, half: str) -> Path:
    """Where the parts of a half lie; those of a short run apart."""
    folder: Path = options.parts / (half if options.limit is None else f"{half}-{options.limit}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def table_of(half: str, options: argparse.Namespace) -> dict[str, Any]:
    """The tables of one half by profile, its parts computed side by side."""
    folder, parts = _folder(options, half), PARTS[options.whole][half]
    names = {
        profile: [f"{profile}-{seed}" for seed in range(parts[profile])] for profile in options.profiles.split(",")
    }
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        every = [name for some in names.values() for name in some]
        for job in [pool.submit(part, folder, name, options.data, half, options.limit) for name in every]:
            job.result()
    return {profile: merged([folder / f"{name}.json" for name in some]).table() for profile, some in names.items()}


def lines(report: dict[str, Any], path: str = "") -> Iterator[str]:
    """One figure a line, under the names of its tables."""
    for key, value in report.items():
        if isinstance(value, dict) and key not in ("recall", "reasons", "quarantine_reasons", "left_by_label"):
            yield from lines(value, f"{path} {key}".strip())
        else:
            yield f"{path:44s} {key:24s}{value}"


if __name__ == "__main__":
    main()
