"""Which entries of the aggregator's audit log the coordinator is told about."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.config.sources import NoticeKind
from usfmae.core.errors import UsfmaeError
from usfmae.core.web.notify import Notifier
from usfmae.server.layout import Layout

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0


def kind(entry: Mapping[str, Any]) -> NoticeKind | None:
    """What an entry is to the coordinator; None for what needs nobody."""
    refused = entry.get("status") == "refused"
    if entry.get("event") in ("round", "forgetting") and refused:
        return NoticeKind.FAILED
    return NoticeKind.REFUSED if entry.get("event") == "reply" and refused else None


@contextlib.contextmanager
def notified(home: Layout, settings: CoordinatorSettings) -> Iterator[None]:
    """The coordinator is told while the block runs. A channel that fails is logged once, and stops nothing."""
    notifier, stop = Notifier(home.audit, settings.name, settings.notify, kind), threading.Event()

    def loop() -> None:
        logged = ""
        while not stop.is_set():
            try:
                notifier.look()
            except (UsfmaeError, OSError) as error:
                if str(error) != logged:
                    logger.warning("%s", error)
                logged = str(error)
            stop.wait(LOOK_SECONDS)

    thread = threading.Thread(target=loop, name="notices", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(1.0)
