"""Which entries of a site's audit log a person is told about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from usfmae.client.site import Site
from usfmae.core.config.sources import NoticeKind
from usfmae.core.web.notify import Notifier

FAILURES = frozenset(
    ("worker.crashed", "request.failed", "request.set-aside", "training.refused", "agent.failed", "worker.failed",
     "key.refused", "request.refused", "dicomweb.failed", "intake.failed")
)  # fmt: skip


def notifier(site: Site) -> Notifier:
    """What tells the persons of this site."""
    needs_approval = site.settings.release == "approve"

    def kind(entry: Mapping[str, Any]) -> NoticeKind | None:
        event = entry.get("event")
        if event == ("outbox.staged" if needs_approval else "outbox.held"):  # what its probe held is staged as well
            return NoticeKind.APPROVAL
        if event == "campaign.waiting":
            return NoticeKind.CAMPAIGN
        if event == "corpus.prepared" and entry.get("new_quarantined", entry.get("quarantined")):
            return NoticeKind.QUARANTINE
        return NoticeKind.FAILED if event in FAILURES else None

    return Notifier(site.audit_log, site.settings.name, site.settings.notify, kind)
