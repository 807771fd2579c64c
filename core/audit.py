"""An append-only log in which each line carries the hash of the one before: any edit, loss or swap shows.

The last line's hash stands beside the log as well (`audit.head`): a log that was cut at its end shows too, also when
more was written since. Who can write here can forge both; a hash noted elsewhere (`verify --head`) finds that.

One JSON object a line: `time` (UTC), `actor`, `event`, `status`, the event's own fields, `previous`, `hash`.
No identifiers of patients, paths of scans or UIDs go in.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from usfmae.core.errors import PolicyError, ResourceError, SourceError
from usfmae.core.files import disk_full, full_disk_said, hold
from usfmae.core.types import content_id

START = "0" * 64


def _hash(entry: dict[str, Any]) -> str:
    return content_id(json.dumps({k: v for k, v in entry.items() if k != "hash"}, sort_keys=True))


def _last_line(file: Any) -> str:
    """The last complete line, reading from the end so that appending stays cheap in a long log."""
    end = file.seek(0, os.SEEK_END)
    block = b""
    while end > 0 and block.count(b"\n") < 2:
        start = max(0, end - 4096)
        file.seek(start)
        block = file.read(end - start) + block
        end = start
    return block.strip().rsplit(b"\n", 1)[-1].decode() if block.strip() else ""


def _torn_end(file: BinaryIO) -> int:
    """Take back a line without its end, which a crash tore before it was acknowledged; its length in bytes."""
    end = file.seek(0, os.SEEK_END)
    start = max(0, end - 65536)
    file.seek(start)
    tail = file.read(end - start)
    torn = len(tail) - (tail.rfind(b"\n") + 1)
    if torn:
        file.truncate(end - torn)
    return torn


def append(log: Path, actor: str, event: str, status: str = "ok", **fields: Any) -> str:
    """Add one entry under a file lock and return its hash. Raises ResourceError where it cannot be written whole."""
    with full_disk_said(log), _opened(log) as file:
        hold(file, wait=True)
        torn = _torn_end(file)
        last = _last_line(file)
        entry: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "actor": actor,
            "event": event,
            "status": status,
            **fields,
            **({"torn_bytes_before": torn} if torn else {}),
        }
        try:
            before = json.loads(last) if last else {"hash": START, "previous": START}
            entry["previous"] = before["hash"]
            if missing := _missing(log, (before["hash"], before["previous"])):
                entry["missing_before"] = missing
        except (ValueError, KeyError, TypeError):
            raise SourceError(
                f"audit log {log}",
                "its last line is damaged",
                f"keep it and {head_file(log).name} for review; move both aside to go on",
            ) from None
        entry["hash"] = _hash(entry)
        _add_line(file, (json.dumps(entry, sort_keys=True) + "\n").encode())
        _note_head(log, entry["hash"])
        return str(entry["hash"])


def _opened(log: Path) -> BinaryIO:
    log.parent.mkdir(parents=True, exist_ok=True)
    return log.open("a+b")


def head_file(log: Path) -> Path:
    return log.with_suffix(".head")


def _missing(log: Path, last: tuple[str, str]) -> str:
    """The hash noted beside the log, where the log holds it no more; `last`: hashes of its last two lines."""
    path = head_file(log)
    head = path.read_text() if path.exists() else ""
    if not head or head in last or any(entry["hash"] == head for entry in entries(log)):
        return ""
    return head


def _note_head(log: Path, head: str) -> None:
    """After the line is on disk: whatever dies in between leaves an older head, which is still in the log."""
    part = log.with_suffix(".head.part")
    with contextlib.suppress(OSError):  # a full disk: the older head stays
        part.write_text(head)
        part.replace(head_file(log))


def _add_line(file: BinaryIO, line: bytes) -> None:
    """The whole line or nothing: what a full disk or a power cut tears was never acknowledged, and is taken back."""
    end, torn = file.seek(0, os.SEEK_END), None
    try:
        os.write(file.fileno(), line[:-1])
        os.write(file.fileno(), line[-1:])
        os.fsync(file.fileno())
        if file.seek(0, os.SEEK_END) != end + len(line):
            torn = disk_full(Path(file.name))
    except OSError as error:  # `append` knows a full disk by its text
        torn = ResourceError(f"audit log {file.name}", error.strerror or str(error), "look at its disk")
    if torn:
        os.ftruncate(file.fileno(), end)
        raise torn


def entries(log: Path) -> Iterator[dict[str, Any]]:
    """Every entry in order, unchecked."""
    if log.exists():
        with log.open() as file:
            yield from (json.loads(line) for line in file if line.strip())


def verify(log: Path, head: str | None = None) -> int:
    """Number of entries if the chain holds; PolicyError names the first line that does not.

    `head` is a hash noted earlier, by default the one beside the log; it must occur, so that a cut end is found too.
    """
    path = head_file(log)
    head = head or (path.read_text() if path.exists() else None)
    previous, count, seen_head = START, 0, head is None
    with log.open() as file:
        for count, line in enumerate(file, 1):
            try:
                entry = json.loads(line)
                sound = entry["previous"] == previous and entry["hash"] == _hash(entry)
            except (ValueError, KeyError, TypeError):
                sound = False
            if not sound:
                raise PolicyError(f"audit log {log} line {count}", "the hash chain is broken", "it was edited")
            if missing := entry.get("missing_before"):
                raise PolicyError(
                    f"audit log {log} line {count}", f"entry {missing} before it is missing", "it was cut"
                )
            previous = entry["hash"]
            seen_head = seen_head or previous == head
    if not seen_head:
        raise PolicyError(f"audit log {log}", f"entry {head} is missing", "the log was cut")
    if head is None and count > 1:
        raise PolicyError(f"audit log {log}", f"{path.name} is missing beside it", "copy both, else its end may be cut")
    return count
