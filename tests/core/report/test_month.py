"""The monthly page: figures of that month alone, nothing that identifies, escaped."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from usfmae.core import audit
from usfmae.core.errors import UsageError
from usfmae.core.report.site import month, month_of, write_month


def entry(time: str, event: str, status: str = "ok", **fields: Any) -> dict[str, Any]:
    return {
        "time": time,
        "actor": "site:a",
        "event": event,
        "status": status,
        "previous": "0",
        "hash": "f" * 64,
    } | fields


LOG = [
    entry("2026-09-30T23:59:59", "corpus.prepared", scans=10, frames=20, kept=15, quarantined=5),
    entry("2026-10-01T00:00:00", "corpus.prepared", scans=14, frames=30, kept=22, quarantined=8),
    entry("2026-10-02T00:00:00", "quarantine.released", entry="e1", reason="text-left", by="<b>x</b>"),
    entry("2026-10-03T00:00:00", "outbox.approved", id="r1", by="officer"),
    entry("2026-10-04T00:00:00", "request.refused", "refused", why="norm jumped"),
    entry("2026-11-01T00:00:00", "pause"),
]


def sent(month_: int, size: int) -> dict[str, Any]:
    moment = datetime(2026, month_, 15, tzinfo=UTC).timestamp()
    about = {"id": f"r{month_}", "campaign": "c", "round": month_, "norm": 1.0, "recipient": "https://fl"}
    return {**about, "bytes": size, "sent": {"time": moment}}


def test_only_the_month_counts() -> None:
    found = month(LOG, [sent(9, 5), sent(10, 70), {**sent(10, 9), "sent": {}}], "2026-10")
    assert found["intake"] == {"scans": 4, "frames": 10, "kept": 7, "quarantined": 3, "refused": 0, "failed": 0}
    assert [one["id"] for one in found["sent"]] == ["r10"] and found["sent_bytes"] == 70
    assert found["quarantine"] == {"released": 1} and len(found["decisions"]) == 1
    assert [one["event"] for one in found["anomalies"]] == ["request.refused"]
    assert month(LOG, [], "2026-11")["intake"]["scans"] == 0
    assert [one["event"] for one in month(LOG, [], "2026-11")["switches"]] == ["pause"]


def test_what_is_new_counts_although_totals_follow_the_sources_and_what_was_withdrawn_is_said(tmp_path: Path) -> None:
    """A PACS' scans are deleted once they are cleaned: the totals of the sources fall again."""
    log = [
        entry("2026-10-01T00:00:00", "corpus.prepared", scans=9, kept=90, new_scans=9, new_kept=90),
        entry("2026-10-02T00:00:00", "corpus.prepared", scans=2, kept=20, new_scans=2, new_kept=20),
        entry("2026-10-03T00:00:00", "corpus.withdrawn", images=4, what="patient", by="anna"),
    ]
    found = month(log, [], "2026-10")
    assert found["intake"]["scans"] == 11 and found["intake"]["kept"] == 110 and found["withdrawn"] == 4
    write_month(tmp_path / "m.html", "site", "abc", found, "")
    assert "images withdrawn" in (tmp_path / "m.html").read_text()


def test_the_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    found = month(LOG, [{**sent(10, 70), "campaign": "<script>x</script>"}], "2026-10")
    write_month(tmp_path / "m.html", "<i>site</i>", "abc", found, "6 entries, unbroken")
    text = (tmp_path / "m.html").read_text()
    assert "<script" not in text and "<i>site" not in text and "&lt;i&gt;site" in text
    assert "http://" not in text.replace("http://www.w3.org", "") and "norm jumped" in text


def test_it_reads_a_real_audit_log(tmp_path: Path) -> None:
    audit.append(tmp_path / "a.jsonl", "site:a", "corpus.prepared", scans=3, kept=2)
    found = month(audit.entries(tmp_path / "a.jsonl"), [], month_of(None))
    assert found["intake"]["scans"] == 3 and json.dumps(found)


@pytest.mark.parametrize("text", ["2026-13", "2026", "../../x", "2026-1", ""])
def test_a_wrong_month_is_said(text: str) -> None:
    with pytest.raises(UsageError, match="YYYY-MM"):
        month_of(text)
