"""Reading: every file that may hold ultrasound becomes a Scan, and a Scan becomes Frames, lazily."""

from usfmae.core.read.discover import discover, identify, walk
from usfmae.core.read.facts import RefusedScan, Unreadable
from usfmae.core.read.reader import read

__all__ = ["RefusedScan", "Unreadable", "discover", "identify", "read", "walk"]
