"""The demo's report: what was learned, reconstructions, before and after cleaning, lineage."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2

from usfmae.core.checkpoint import read_metadata
from usfmae.core.config import CleanSettings, ReadSettings
from usfmae.core.report.page import overlaid, picture, write_page
from usfmae.core.types import CleanImage, Frame, Quarantined
from usfmae.core.web.chart import REPORT, line_chart

if TYPE_CHECKING:
    from usfmae.core.demo.story import Demo

COUNTS = ("scans", "frames", "kept", "quarantined", "refused")
SHOWN = 3  # scans shown per hospital


def write_report(demo: Demo) -> None:
    """`report.html` in the demo's folder; pictures come from the scans themselves, so it stays in the hospital."""
    summary = demo.summary
    sent = [size for sizes in summary["update_bytes"].values() for size in sizes]
    write_page(
        demo.out / "report.html",
        "demo.html",
        **{key: summary[key] for key in ("sites", "rounds", "images", "timm_max_abs_diff")},
        update_mb=sum(sent) / max(1, len(sent)) / 1e6,
        losses=_losses(summary),
        chart=_chart(summary),
        panels=[{"name": n, "image": picture(_png(demo.panel(n)))} for n in demo.names if demo.panel(n).exists()],
        gallery=[_gallery(demo, name) for name in demo.names],
        lineage=_lineage([demo.seed, *sorted((demo.coordinator / "checkpoints").glob("round-*.safetensors"))]),
        seconds=round(time.monotonic() - demo.started),
    )


def _losses(summary: dict[str, Any]) -> list[dict[str, Any]]:
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


def _chart(summary: dict[str, Any]) -> str:
    labels = [*range(1, summary["rounds"] + 1), "merged"]
    lines = {name: [*summary["round_losses"][name], summary["final_loss"][name]] for name in summary["sites"]}
    return line_chart(lines, labels, "held-out masked loss", "round", REPORT)


def _png(path: Path) -> Any:
    return cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)


def _gallery(demo: Demo, name: str) -> dict[str, Any]:
    prepared = demo.summary["prepared"][name]
    return {
        "name": name,
        "prepared": ", ".join(
            f"{prepared[key]} {key}" for key in ("scans", "frames", "kept", "quarantined", "refused")
        ),
        "pictures": [_cleaned(frame) for frame in _frames(demo.sources[name])],
    }


def _frames(source: Path) -> list[Frame]:
    """The first frame of a few scans, spread over the folder."""
    from usfmae.core.errors import SourceError
    from usfmae.core.read import discover, read
    from usfmae.core.types import Scan

    found = [s for s in discover([source], b"report", ReadSettings()) if isinstance(s, Scan)]
    frames = []
    for scan in found[:: max(1, len(found) // SHOWN)][:SHOWN]:
        try:
            frames.append(next(iter(read(scan, ReadSettings()))))
        except (SourceError, StopIteration):
            continue  # prepare has counted it; the gallery shows what can be shown
    return frames


def _cleaned(frame: Frame) -> dict[str, Any]:
    from usfmae.core.clean import clean

    done = clean(frame, CleanSettings())
    shown = {"before": picture(frame.pixels, 320)}
    if isinstance(done, Quarantined):
        return {**shown, "mask": shown["before"], "after": shown["before"], "share": 0.0, "caption": done.reason}
    assert isinstance(done, CleanImage)
    return {
        **shown,
        "mask": picture(overlaid(frame.pixels, done.mask), 320),
        "after": picture(done.pixels, 320),
        "share": float(done.mask.mean()),
        "caption": "cleaned",
    }


def _lineage(files: list[Path]) -> list[dict[str, Any]]:
    import json

    rows = []
    for file in files:
        metadata = read_metadata(file)
        trail = json.loads(metadata.get("trail", "{}"))
        rows.append({"name": file.name, "id": metadata.get("content", ""), "parents": trail.get("parents", [])})
    return rows
