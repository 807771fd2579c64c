"""Templates for pages that are rendered on the server: escaped by default, figures formatted for people."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined

from usfmae.core import __version__
from usfmae.core.keys import grouped

STATIC = Path(__file__).parent / "static"


def environment(package: str) -> Environment:
    """Templates of `package`, on top of the shared ones. An undefined name is an error, not an empty string."""
    loader = ChoiceLoader([PackageLoader(package), FileSystemLoader(Path(__file__).parent / "templates")])
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.globals["version"] = __version__
    made.filters |= {
        "ago": ago,
        "size": size,
        "duration": duration,
        "stamp": stamp,
        "short": short,
        "grouped": grouped,
        "count": count,
    }
    return made


def ago(moment: float | None, now: float | None = None) -> str:
    """`4 min ago`; `never` for None."""
    if not moment:
        return "never"
    return f"{duration(max(0.0, (now or time.time()) - moment))} ago"


def duration(seconds: float | None) -> str:
    """The largest unit that fits: `45 s`, `12 min`, `3.5 h`, `9 days`."""
    if seconds is None:
        return "–"
    for limit, unit, divisor in ((90, "s", 1), (5400, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            value = seconds / divisor
            return f"{value:.1f} {unit}" if value < 10 and divisor == 3600 else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def size(count_: float | None) -> str:
    """Bytes in decimal units: `86.3 MB`."""
    value = float(count_ or 0)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def count(value: float | None) -> str:
    """An integer with thin spaces between thousands."""
    return f"{int(value or 0):,}".replace(",", "\u202f")


def stamp(moment: float | None) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC") if moment else "–"


def short(text: str | None) -> str:
    """The first 12 signs of a hash."""
    return (text or "–")[:12]
