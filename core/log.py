"""Logs for people and machines: structured lines on stderr, never on stdout, never an identifier.

Anything that looks like a path of a scan, a UID or a DICOM person name is replaced before a line is written:
the last net, not the first; callers pass ids from a Trail, not paths.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import Any

# A SOP class says what kind of object it is, not whose; a person needs it to write it into the settings.
_UID = re.compile(r"(sop_class(?:=|\": \"))?\b[0-2](?:\.\d+){5,}\b")
_PASSWORD = re.compile(r"(?<=://)[^\s/]*@")
_PERSON = re.compile(r"\b[\w'-]+\^[\w'^-]+")
_PATH = re.compile(
    r"(?<![\w:/])/(?:[^\s/:'\"]+/)+[^\s:'\"]+\.(?:dcm|png|jpe?g|bmp|tiff?|mp4|avi|mov|gif|nii|mh[ad])\b", re.I
)


def without_password(text: str) -> str:
    """The text without the name and password that addresses in it hold (`http://name:password@host`)."""
    return _PASSWORD.sub("", text)


def scrub(text: str) -> str:
    """The text without UIDs, person names (`Family^Given`), paths of scans and passwords of addresses."""
    text = without_password(text)
    text = _UID.sub(lambda match: match[0] if match[1] else "<uid>", text)
    for pattern, name in ((_PERSON, "<name>"), (_PATH, "<scan>")):
        text = pattern.sub(name, text)
    return text


def printable(text: str, most: int = 200) -> str:
    """The beginning of what somebody else wrote, in one line and without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text[:most])


class _Lines(logging.Formatter):
    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        message = printable(scrub(record.getMessage()), 10_000)
        stamp = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        if record.exc_info:
            fields = {**fields, "exception": self.formatException(record.exc_info)}
        if self.as_json:
            line = {"time": stamp, "level": record.levelname.lower(), "event": message, **fields}
            return scrub(json.dumps(line, default=str))
        extra = " ".join(f"{k}={v if k == 'exception' else printable(str(v), 10_000)}" for k, v in fields.items())
        return scrub(f"{stamp} {record.levelname.lower():7s} {message} {extra}".rstrip())


def setup(as_json: bool | None = None, level: str = "INFO") -> None:
    """Send every log line to stderr, as JSON where LOG_FORMAT=json asks for it."""
    as_json = os.environ.get("LOG_FORMAT") == "json" if as_json is None else as_json
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(as_json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("flwr").setLevel("WARNING")
    logging.getLogger("httpx").setLevel("WARNING")


def note(logger: logging.Logger, event: str, level: int = logging.INFO, **fields: Any) -> None:
    """One structured line: an event and its fields."""
    logger.log(level, event, extra={"fields": fields})
