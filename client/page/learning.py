"""What the page shows of how the model grows here: losses by round, what came in, and reconstructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from usfmae.client.page.view import tail
from usfmae.client.site import Site
from usfmae.core.report.site import came_in
from usfmae.core.web.chart import line_chart

READ = 5000  # audit entries that are looked through for preparations


def loss_chart(entries: Sequence[Mapping[str, Any]]) -> Markup:
    """Held-out loss here before and after each round's training, of the campaign trained last; empty before the first."""
    campaign = entries[-1].get("campaign") if entries else None
    records = {entry["round"]: entry["record"] for entry in entries if entry.get("campaign") == campaign}
    rounds = sorted(records)
    series = {
        "the encoder that came": [records[number].get("loss_before") for number in rounds],
        "after training here": [records[number].get("loss_after") for number in rounds],
    }
    return line_chart(series, rounds, "held-out loss at this site by round", "round")


def intake_chart(site: Site) -> Markup:
    """Frames kept and kept back by each day's preparations; empty before the first."""
    days: dict[str, dict[str, int]] = {}
    for time, counts in came_in(tail(site.audit_log, READ) if site.audit_log.exists() else []):
        day = days.setdefault(time[:10], {"kept": 0, "quarantined": 0})
        for name in day:
            day[name] += counts[name]
    labels = sorted(days)
    series = {
        "kept": [float(days[day]["kept"]) for day in labels],
        "kept back": [float(days[day]["quarantined"]) for day in labels],
    }
    return line_chart(series, labels, "frames by day", "")
