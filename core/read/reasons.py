"""Why a scan is not read: by rule (refused) or because it cannot be (unreadable). Each carries a short code.

The code goes into ledgers and reports, so it never holds anything out of the file.
"""

from __future__ import annotations

from usfmae.core.errors import SourceError


class Unreadable(SourceError):  # noqa: N818
    """The scan is damaged, hostile or too large: it goes to quarantine under `reason`."""

    def __init__(self, reason: str, why: str = "") -> None:
        self.reason = reason
        super().__init__(f"scan: {reason}", why, "see it inside the hospital, mend or drop it")


class Refused(SourceError):  # noqa: N818
    """A rule excludes the scan (a report, another modality): refused under `reason`."""

    def __init__(self, reason: str, why: str = "") -> None:
        self.reason = reason
        super().__init__(f"scan: {reason}", why, "nothing to do: such objects are never read")
