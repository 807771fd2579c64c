"""What a process that stands for weeks owes the machine: an end on request, and a word on how it is."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from usfmae.client.site import Site


@contextlib.contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C call `stop`, where the block runs in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_status(site: Site, status: dict[str, Any]) -> None:
    """DIR/status.json: renamed, not flushed, since after a power cut it means nothing anyway."""
    part = site.root / ".status.part"
    with contextlib.suppress(OSError):
        part.write_text(json.dumps(status))
        part.replace(site.root / "status.json")
