"""Scores cleaning on synthetic overlays over real clean scans: what stays readable, what tissue is harmed, how fast.

    python benchmarks/clean.py --json [--data DIR] [--parts DIR] [--half both|scoring|tuning|fresh] [--profiles safe,paper]
                               [--whole]
    python benchmarks/clean.py --half scoring --parts DIR --only safe-3        one part and no table, to share the work

The work is cut into parts of about 33 annotated pictures, 38 clean stills and 8 clean clips, each with a seed of its
own and about a minute of one core. Both the scoring half and the fresh part, whose data sets and type faces neither half
holds, are run: two parts for the safe profile and one for the paper profile of the scoring half, one and one of the
fresh part; with --whole ten and two, three and one. A part that lies in DIR is not computed again, so a run that was cut
off goes on. Speed is measured last, on the scoring half.

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
from collections.abc import Iterator
from dataclasses import dataclass, field
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
from numpy.typing import NDArray

from usfmae.core.clean import clean, clean_clip
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import CleanImage, Frame, Quarantined

Pixels = NDArray[np.uint8]

TISSUE = 3  # gray levels above the screen's dark level; below lie black and the noise of codecs
KINDS = {"outside": "outside", "tissue": "tissue", "low": "low"}


@dataclass
class Size:
    """How much one part measures."""

    strings_outside: int = 300
    strings_tissue: int = 100
    clean_stills: int = 38
    clips: int = 8


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


def tissue_of(pixels: Pixels) -> NDArray[np.bool_]:
    """Pixels clearly above the screen's own dark level (0 on most devices)."""
    gray = pixels.max(2)
    counts = np.bincount(gray.ravel(), minlength=256)[:32]
    level = int(counts.argmax()) if counts.max() > 0.03 * gray.size else 0
    return gray > level + TISSUE


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
        if score.strings["outside"] >= size.strings_outside and score.strings["tissue"] >= size.strings_tissue:
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


def part(folder: Path, name: str, root: Path, half: str) -> None:
    """Compute one part, "profile-seed", unless it lies in the folder."""
    file = folder / f"{name}.json"
    if file.exists():
        return
    profile, seed = name.split("-")
    score = quality(root, half, PART[half], CleanSettings(profile=profile), int(seed))
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
    parser.add_argument("--half", choices=("both", "scoring", "tuning", "fresh"), default="both")
    parser.add_argument("--profiles", default="safe,paper")
    parser.add_argument("--parts", type=Path, help="where the parts lie, or will lie; default: a temporary folder")
    parser.add_argument("--only", help="compute this part, such as safe-3, and stop")
    parser.add_argument("--whole", action="store_true", help="all parts: about a quarter of an hour of one core")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    halves = ("scoring", "fresh") if options.half == "both" else (options.half,)
    start, report = time.time(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as temporary:
        for half in halves:
            folder = (options.parts or Path(temporary)) / half
            folder.mkdir(parents=True, exist_ok=True)
            if options.only:
                part(folder, options.only, options.data, half)
            else:
                report[half] = table_of(folder, half, options)
    if not options.only:
        report["seconds"] = round(time.time() - start)
        print(json.dumps(report) if options.json else "\n".join(lines(report)))


def table_of(folder: Path, half: str, options: argparse.Namespace) -> dict[str, Any]:
    """The tables of one half by profile, and the speed, which is measured on all but the fresh part."""
    report: dict[str, Any] = {}
    for profile in options.profiles.split(","):
        names = [f"{profile}-{seed}" for seed in range(PARTS[options.whole][half][profile])]
        for name in names:
            part(folder, name, options.data, half)
        report[profile] = merged([folder / f"{name}.json" for name in names]).table()
    return report if half == "fresh" else report | {"timing": timed(options.data, half)}


def lines(report: dict[str, Any]) -> Iterator[str]:
    for half, tables in report.items():
        if isinstance(tables, dict):
            for name, table in tables.items():
                yield from (f"{half:8s}{name:7s}{key:24s}{value}" for key, value in table.items())


if __name__ == "__main__":
    main()
