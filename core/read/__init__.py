"""Reading: every file that may hold ultrasound becomes a Scan, and a Scan becomes Frames, lazily."""

from usfmae.core.read.discover import discover, identify, walk
from usfmae.core.read.reader import read
from usfmae.core.read.refusal_codes import RefusedScan, Unreadable

__all__ = ["RefusedScan", "Unreadable", "discover", "identify", "read", "walk"]
