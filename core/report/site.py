"""A site's month on one page that a security officer can file: what came in, what left, approvals, anomalies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from usfmae.core.errors import UsageError
from usfmae.core.report.page import write_page
from usfmae.core.web.templating import size

COUNTS = ("scans", "frames", "kept", "quarantined", "refused", "failed")
FINE = ("ok",)


def month_of(text: str | None) -> str:
    """`YYYY-MM`, the present month where none is given. UsageError for anything else."""
    if text is None:
        return datetime.now(UTC).strftime("%Y-%m")
    if not re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", text):
        raise UsageError(f"--month {text}", "is not of the form YYYY-MM", "write for example --month 2026-11")
    return text


def month(entries: Iterable[Mapping[str, Any]], outbox: Sequence[Mapping[str, Any]], wanted: str) -> dict[str, Any]:
    """The month's figures out of the audit log and the outbox."""
    log = list(entries)
    mine = [e for e in log if str(e["time"]).startswith(wanted)]
    prepared = [counts for time, counts in came_in(log) if time.startswith(wanted)]
    sent = [e for e in outbox if e.get("sent") and _month(e["sent"].get("time")) == wanted]
    return {
        "month": wanted,
        "events": len(mine),
        "intake": {name: sum(counts[name] for counts in prepared) for name in COUNTS},
        "withdrawn": sum(int(e["images"]) for e in mine if e["event"] == "corpus.withdrawn"),
        "sent": [{k: e.get(k) for k in ("id", "campaign", "round", "bytes", "norm", "recipient")} for e in sent],
        "sent_bytes": sum(int(e["bytes"]) for e in sent),
        "decisions": [_row(e) for e in mine if e["event"].startswith(("outbox.approved", "outbox.rejected"))],
        "quarantine": dict(Counter(e["event"].split(".")[1] for e in mine if e["event"].startswith("quarantine."))),
        "switches": [_row(e) for e in mine if e["event"] in ("pause", "resume") or e["event"].startswith("keys.")],
        "anomalies": [_row(e) for e in mine if e["status"] not in FINE],
        "head": str(mine[-1]["hash"]) if mine else "",
    }


def came_in(log: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, int]]]:
    """(time, what was new) of each `prepare`. Version 0.1 wrote totals over the sources alone: there, how much they rose."""
    last = dict.fromkeys(COUNTS, 0)
    for entry in (e for e in log if e.get("event") == "corpus.prepared"):
        totals = {name: int(entry.get(name, 0)) for name in COUNTS}
        yield (
            str(entry["time"]),
            {name: int(entry.get(f"new_{name}", max(0, totals[name] - last[name]))) for name in COUNTS},
        )
        last = totals


def _month(moment: float | None) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m") if moment else ""


def _row(entry: Mapping[str, Any]) -> dict[str, str]:
    own = ("time", "actor", "event", "status", "previous", "hash")
    rest = ", ".join(f"{key} {value}" for key, value in entry.items() if key not in own and value != "")
    return {"time": str(entry["time"])[:16].replace("T", " "), "event": str(entry["event"]), "details": rest[:300]}


def write_month(path: Path, name: str, fingerprint: str, month: Mapping[str, Any], chain: str) -> None:
    """The page; `chain` says whether the audit log is unbroken."""
    write_page(path, "month.html", name=name, fingerprint=fingerprint, month=month, chain=chain, size=size)
