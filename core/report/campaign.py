"""A campaign on one page to file: sites, rounds, verdicts, losses, anomalies. Figures only, from the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from usfmae.core.report.page import write_page
from usfmae.core.types import Pixels
from usfmae.core.web.chart import PLAIN, REPORT, Axis, line_chart
from usfmae.core.web.templating import duration, size, stamp

READINGS = {
    "forgetting": "masked loss on the public panel, change since the seed: above 0 is worse",
    "knn": "balanced accuracy of kNN, frozen features",
    "probe": "balanced accuracy of the linear probe, frozen features",
    "cka": "similarity of the features to the seed's (CKA)",
}

AXES = {"forgetting": Axis(percent=True, limits={"seed": 0.0})}


Pictures = Sequence[tuple[int, Mapping[str, Pixels]]]  # round (0: the seed), organ -> three pictures side by side


def write_campaign(path: Path, campaign: Mapping[str, Any], pictures: Pictures = ()) -> None:
    """`campaign`: its name, sites, rounds (oldest first), not_admitted, declined, chain; as `server.dashboard.view` reads them."""
    committed = [r for r in campaign["rounds"] if r["state"] == "committed"]
    labels = [str(r["number"]) for r in committed]
    losses = {
        text: [r["summary"].get(key) for r in committed]
        for key, text in (("loss_before", "before training"), ("loss_after", "after"))
    }
    readings = [(key, text, _by_organ(committed, key)) for key, text in READINGS.items()]
    write_page(
        path,
        "campaign.html",
        campaign=campaign,
        done=committed,
        chart=line_chart(losses, labels, "held-out masked loss at the sites", "round", REPORT) if committed else "",
        panel=[
            (text, line_chart(lines, labels, text, "round", REPORT, AXES.get(key, PLAIN)))
            for key, text, lines in readings
            if lines
        ],
        pictures=pictures,
        cosine=_lowest_cosine,
        percent=lambda value: "–" if value is None else f"{value:+.1%}",
        size=size,
        duration=duration,
        stamp=stamp,
    )


def _by_organ(rounds: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[float | None]]:
    """A reading of the panel by organ and round; organs without one are left out."""
    organs = sorted({organ for r in rounds for organ, readings in r["panel"].items() if key in readings})
    return {organ: [r["panel"].get(organ, {}).get(key) for r in rounds] for organ in organs}


def _lowest_cosine(summary: Mapping[str, Any]) -> str:
    """Between the two sites whose updates agree least."""
    return f"{min(cosine for _, _, cosine in summary['cosines']):+.2f}" if summary.get("cosines") else "–"
