"""Libraries that only some commands need."""

from __future__ import annotations

import importlib.util

from usfmae.core.errors import ResourceError


def needs(library: str, extra: str) -> None:
    """ResourceError where an optional library is missing."""
    if importlib.util.find_spec(library) is None:
        raise ResourceError(f"library {library}", "is not installed", f"pip install 'usfmae[{extra}]'")
