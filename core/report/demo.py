"""The demo's report: what was learned, reconstructions, before and after cleaning, lineage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from usfmae.core.checkpoint import read_metadata
from usfmae.core.config import CleanSettings, ReadSettings
from usfmae.core.report.page import overlaid, picture, write_page
from usfmae.core.types import CleanImage, Frame, Quarantined
from usfmae.core.web.chart import REPORT, line_chart

COUNTS = ("scans", "frames", "kept", "quarantined", "refused")
SHOWN = 3  # scans shown per hospital


@dataclass(frozen=True)
class DemoResult:
    """What a demo leaves to show."""

    summary: Mapping[str, Any]
    sources: Mapping[str, Path]  # each site's scans
    panels: Mapping[str, Path]  # each site's reconstructions, of those that have some
    checkpoints: Sequence[Path]  # the seed, then one a round
    seconds: float


def write_report(path: Path, result: DemoResult) -> None:
    """The page at `path`; pictures come from the scans themselves, so it stays in the hospital."""
    summary = result.summary
    sent = [size for sizes in summary["update_bytes"].values() for size in sizes]
    write_page(
        path,
        "demo.html",
        **{key: summary[key] for key in ("sites", "rounds", "images", "timm_max_abs_diff")},
        update_mb=sum(sent) / max(1, len(sent)) / 1e6,
        losses=_losses(summary),
        chart=_chart(summary),
        panels=[{"name": name, "image": picture(_png(file))} for name, file in result.panels.items()],
        gallery=[_gallery(name, source, summary["prepared"][name]) for name, source in result.sources.items()],
        lineage=_lineage(result.checkpoints),
        seconds=round(result.seconds),
    )


def _losses(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "images": summary["images"][name],
            "held_out": summary["held_out"][name],
            "seed": summary["seed_loss"][name],
            "final": summary["final_loss"][name],
        }
        for name in summary["sites"]
    ]


def _chart(summary: Mapping[str, Any]) -> str:
    labels = [*range(1, summary["rounds"] + 1), "merged"]
    lines = {name: [*summary["round_losses"][name], summary["final_loss"][name]] for name in summary["sites"]}
    return line_chart(lines, labels, "held-out masked loss", "round", REPORT)


def _png(path: Path) -> Any:
    return cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)


def _gallery(name: str, source: Path, prepared: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "prepared": ", ".join(f"{prepared[key]} {key}" for key in COUNTS),
        "pictures": [_cleaned(frame) for frame in _frames(source)],
    }


def _frames(source: Path) -> list[Frame]:
    """The first frame of a few scans, spread over the folder."""
    from usfmae.core.errors import SourceError
    from usfmae.core.read import discover, read
    from usfmae.core.types import Scan

    scans = [s for s in discover([source], b"report", ReadSettings()) if isinstance(s, Scan)]
    frames = []
    for scan in scans[:: max(1, len(scans) // SHOWN)][:SHOWN]:
        try:
            frames.append(next(iter(read(scan, ReadSettings()))))
        except (SourceError, StopIteration):
            continue  # prepare has counted it; the gallery shows what can be shown
    return frames


def _cleaned(frame: Frame) -> dict[str, Any]:
    from usfmae.core.clean import clean

    cleaned = clean(frame, CleanSettings())
    shown = {"before": picture(frame.pixels, 320)}
    if isinstance(cleaned, Quarantined):
        return {**shown, "mask": shown["before"], "after": shown["before"], "share": 0.0, "caption": cleaned.reason}
    assert isinstance(cleaned, CleanImage)
    return {
        **shown,
        "mask": picture(overlaid(frame.pixels, cleaned.mask), 320),
        "after": picture(cleaned.pixels, 320),
        "share": float(cleaned.mask.mean()),
        "caption": "cleaned",
    }


def _lineage(files: Sequence[Path]) -> list[dict[str, Any]]:
    import json

    rows = []
    for file in files:
        metadata = read_metadata(file)
        trail = json.loads(metadata.get("trail", "{}"))
        rows.append({"name": file.name, "id": metadata.get("content", ""), "parents": trail.get("parents", [])})
    return rows
