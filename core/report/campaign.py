"""A campaign on one page to file: sites, rounds, verdicts, losses, anomalies. Figures only, from the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from usfmae.core.report.chart import line_chart
from usfmae.core.report.page import write_page
from usfmae.core.web.looks import duration, size, stamp


def write_campaign(path: Path, found: Mapping[str, Any]) -> None:
    """`found`: campaign, sites, rounds (oldest first), trouble, chain; as `server.dashboard.view` reads them."""
    done = [r for r in found["rounds"] if r["state"] == "committed"]
    labels = [str(r["number"]) for r in done]
    losses = {
        text: [r["summary"].get(key) for r in done]
        for key, text in (("loss_before", "before local training"), ("loss_after", "after"))
    }
    organs = sorted({organ for r in done for organ in r["panel"]})
    panel = {o: [r["panel"].get(o, {}).get("loss") for r in done] for o in organs}
    write_page(
        path,
        "campaign.html",
        found=found,
        done=done,
        chart=line_chart(losses, labels, "held-out masked loss at the sites", "round") if done else "",
        panel=line_chart(panel, labels, "masked loss on the public panel", "round") if organs else "",
        size=size,
        duration=duration,
        stamp=stamp,
    )
