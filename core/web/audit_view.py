"""What a page shows of the audit log: the newest entries that fit a search, and whether the chain holds."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from usfmae.core import audit
from usfmae.core.errors import UsageError, UsfmaeError
from usfmae.core.report.audit_search import AuditFilter, details, search, unknown_event

SHOWN = 200  # entries on the page; a file holds all that fit
BLANK = {"time": "", "event": "", "actor": "", "by": "", "status": ""}
FIELDS = ("text", "event", "status", "by", "since", "until")


def wanted(query: Mapping[str, str]) -> AuditFilter:
    """The filter of an address. UsageError where a date is none."""
    return AuditFilter(**{name: query.get(name, "").strip()[:100] for name in FIELDS})


def audited(log: Path, query: Mapping[str, str]) -> dict[str, Any]:
    """The newest entries that fit, newest first; whether the chain holds; what can be searched for."""
    problem = ""
    try:
        chosen = wanted(query)
    except UsageError as error:
        chosen, problem = AuditFilter(), str(error)
    stat = log.stat() if log.exists() else None
    count, broken = _chain(log, stat.st_size, stat.st_mtime_ns) if stat else (0, "")
    fitting = search(log, chosen)
    problem = problem or ("" if fitting else unknown_event(log, chosen))
    rows = [
        {**BLANK, **one, "fields": ", ".join(f"{k} {v}" for k, v in details(one).items() if v != "")}
        for one in fitting[: -SHOWN - 1 : -1]
    ]
    return {
        "entries": rows,
        "count": count,
        "broken": broken,
        "problem": problem,
        "chosen": {name: query.get(name, "") for name in FIELDS},
        "searching": bool(chosen),
        "fitting": len(fitting),
    }


@functools.lru_cache(maxsize=2)
def _chain(log: Path, size: int, changed: int) -> tuple[int, str]:
    """(entries, "") where the chain holds, else (0, why not); checked anew whenever the file has changed."""
    try:
        return audit.verify(log), ""
    except UsfmaeError as error:
        return 0, str(error)
