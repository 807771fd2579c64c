"""Reading: every file that may hold ultrasound becomes a Scan, and a Scan becomes Frames, lazily."""

from usfmae.core.read.discover import discover, identify, walk
from usfmae.core.read.reader import read
from usfmae.core.read.reasons import Refused, Unreadable

__all__ = ["Refused", "Unreadable", "discover", "identify", "read", "walk"]
