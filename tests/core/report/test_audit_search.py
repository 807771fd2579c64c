"""Searching an audit log: conditions add up, dates include their whole span, a file for a spreadsheet runs nothing."""

from __future__ import annotations

import csv
import json
from io import StringIO
from pathlib import Path

import pytest

from usfmae.core import audit
from usfmae.core.errors import UsageError
from usfmae.core.report.audit_search import AuditFilter, exported, search, unknown_event

ENTRIES = (
    ("2026-02-27", "outbox.staged", "ok", {"entry": "r1-abc"}),
    ("2026-03-01", "outbox.approved", "ok", {"entry": "r1-abc", "by": "Anna Berg"}),
    ("2026-03-14", "request.refused", "refused", {"why": "min_patients 3 of 20"}),
    ("2026-03-31", "outbox.sent", "ok", {"entry": "r1-abc", "note": "=HYPERLINK(1)"}),
    ("2026-04-01", "outboxes", "failed", {}),
    ("2026-04-02", "site-add", "ok", {}),
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    file = tmp_path / "audit.jsonl"
    for day, event, status, more in ENTRIES:
        audit.append(file, "site", event, status, **more)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines[-1]["time"] = f"{day}T09:30:00.000+00:00"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.mark.parametrize(
    ("wanted", "lines"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"event": "site"}, [6]),
        ({"event": "outbox"}, [1, 2, 4]),
        ({"event": "outbox.sent"}, [4]),
        ({"status": "refused"}, [3]),
        ({"by": "Anna Berg"}, [2]),
        ({"by": "site"}, [1, 2, 3, 4, 5, 6]),
        ({"text": "MIN_PATIENTS 3"}, [3]),
        ({"since": "2026-03", "until": "2026-03"}, [2, 3, 4]),
        ({"since": "2026-03-01T09:31"}, [3, 4, 5, 6]),
        ({"until": "2026-03-14 09:30"}, [1, 2, 3]),
        ({"day": "2026-03"}, [2, 3, 4]),
        ({"day": "2026-03-31", "event": "outbox"}, [4]),
        ({"event": "outbox", "since": "2026-03"}, [2, 4]),
        ({"text": "nowhere"}, []),
    ],
)
def test_conditions_add_up_and_dates_include_their_span(log: Path, wanted: dict[str, str], lines: list[int]) -> None:
    assert [entry["line"] for entry in search(log, AuditFilter(**wanted))] == lines


def test_a_date_that_is_none_is_named(log: Path) -> None:
    with pytest.raises(UsageError, match=r"since '14\.3\.2026' - is no date"):
        AuditFilter(since="14.3.2026")
    with pytest.raises(UsageError, match="day '2026-13' - is no date"):
        AuditFilter(day="2026-13")


def test_an_event_that_the_log_never_saw_is_said_with_what_it_has(log: Path) -> None:
    assert "has no event 'outbx'; it has outbox" in unknown_event(log, AuditFilter(event="outbx"))
    assert unknown_event(log, AuditFilter(event="outbox", text="nowhere")) == ""


def test_an_exported_entry_still_proves_its_hash_and_a_cell_is_no_formula(log: Path) -> None:
    newest = search(log, AuditFilter(event="outbox"), newest=1)
    (whole,) = json.loads(exported(newest, "json"))
    assert {"hash", "previous", "line"} <= set(whole) and whole["note"] == "=HYPERLINK(1)"
    audit.append(log, "=cmd()", "outbox.sent")
    rows = list(csv.DictReader(StringIO(exported(search(log, AuditFilter(event="outbox.sent")), "csv"))))
    assert [row["actor"] for row in rows] == ["site", "'=cmd()"]
    assert json.loads(rows[0]["details"]) == {"entry": "r1-abc", "note": "=HYPERLINK(1)"}


def test_a_damaged_line_hides_no_other(log: Path) -> None:
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]) + "\n")
    assert [entry["line"] for entry in search(log, AuditFilter())] == [1, 3, 4, 5, 6]
