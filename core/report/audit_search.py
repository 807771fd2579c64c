"""Search an audit log, and write what fits to a file: the same on the command line and on both pages."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from usfmae.core.errors import UsageError

Format = Literal["csv", "json"]
COLUMNS = ("line", "time", "actor", "event", "status", "by", "details", "hash")
CHAIN = ("previous", "hash")
MOMENT = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d(:\d\d(:\d\d)?)?)?)?)?")  # any beginning of a UTC time, from the year on


@dataclass(frozen=True)
class AuditFilter:
    """Which entries are wanted; what is empty admits every entry.

    `since` and `until` are UTC and hold the beginning of a time: a year, a month, a day, a minute. Both are included.
    """

    text: str = ""  # occurs anywhere in the entry, large or small letters
    event: str = ""  # the event, or its beginning: `outbox` admits `outbox.sent`, `site` admits `site-add`
    status: str = ""
    by: str = ""  # the person who decided, or the part of the program that wrote the entry
    since: str = ""
    until: str = ""
    day: str = ""  # the same as `since` and `until` of this time

    def __post_init__(self) -> None:
        for name in ("since", "until", "day"):
            value = getattr(self, name)
            object.__setattr__(self, name, value.strip().replace(" ", "T"))
            if value and not _is_moment(getattr(self, name)):
                raise UsageError(
                    f"{name} {value!r:.40}", "is no date", "write it as 2026-03, 2026-03-14 or 2026-03-14T09:30"
                )

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))

    def admits(self, entry: dict[str, Any]) -> bool:
        time, event = str(entry.get("time", "")), str(entry.get("event", ""))
        return (
            (not self.event or event == self.event or event.startswith((f"{self.event}.", f"{self.event}-")))
            and (not self.status or entry.get("status") == self.status)
            and (not self.by or self.by in (entry.get("by"), entry.get("actor")))
            and time.startswith(self.day)
            and self.since <= time
            and (not self.until or time[: len(self.until)] <= self.until)
            and (not self.text or self.text.casefold() in searched(entry))
        )


def _is_moment(text: str) -> bool:
    """Whether this is a time, or the beginning of one."""
    if not MOMENT.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text + "0001-01-01T00:00:00"[len(text) :])
    except ValueError:
        return False
    return True


def unknown_event(log: Path, wanted: AuditFilter) -> str:
    """A sentence where the log holds no event of the wanted name at all, with the ones that look like it."""
    known = {str(entry.get("event", "")) for _, entry in readable(log)} - {""}
    groups = {re.split("[.-]", name)[0] for name in known}
    if not wanted.event or wanted.event in known | groups:
        return ""
    close = difflib.get_close_matches(wanted.event, known | groups) or sorted(known)
    return f"this log has no event {wanted.event!r}; it has {', '.join(close)}"


def searched(entry: dict[str, Any]) -> str:
    """What the free text is looked for in: every value, and the names of the fields."""
    own = {name: value for name, value in entry.items() if name not in CHAIN}
    return f"{json.dumps(own, ensure_ascii=False)} {entry.get('hash', '')}".casefold()


def search(log: Path, wanted: AuditFilter, newest: int | None = None) -> list[dict[str, Any]]:
    """The entries that fit, oldest first, each with its `line`; only the `newest` ones where that is given.

    Nothing is verified here: a line that cannot be read is left out, and `audit.verify` tells of it.
    """
    fitting = ({"line": line, **entry} for line, entry in readable(log) if wanted.admits(entry))
    return list(deque(fitting, newest))


def readable(log: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, entry) of every line that holds an entry."""
    if not log.exists():
        return
    with log.open() as file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield number, entry


def details(entry: dict[str, Any]) -> dict[str, Any]:
    """What an entry says beside the columns of the table."""
    return {name: value for name, value in entry.items() if name not in COLUMNS and name not in CHAIN}


def exported(entries: Iterable[dict[str, Any]], form: Format) -> str:
    """The entries as a file's text. JSON keeps each whole, so that its hash can be checked; CSV is for a spreadsheet."""
    if form == "json":
        return json.dumps(list(entries), indent=1, ensure_ascii=False) + "\n"
    out = StringIO()
    table = csv.DictWriter(out, COLUMNS, extrasaction="ignore")
    table.writeheader()
    for entry in entries:
        rest = details(entry)
        row = {**entry, "details": json.dumps(rest, ensure_ascii=False) if rest else ""}
        table.writerow({name: _plain(row.get(name, "")) for name in COLUMNS})
    return out.getvalue()


def _plain(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
