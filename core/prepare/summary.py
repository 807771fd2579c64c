"""What became of the scans in the sources: the object `usfmae prepare --json` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from usfmae.core.sandbox.worker import ScanResult


@dataclass
class PrepareSummary:
    """Counts over the sources of one call, work of earlier calls included; rates are of this call alone.

    Every scan is one of: read, quarantined whole, refused, failed, a duplicate of another scan. Every frame is one of:
    kept, quarantined, a near-duplicate. `quarantined` and `duplicates` count scans and frames alike.
    """

    scans: int = 0
    frames: int = 0
    kept: int = 0
    quarantined: int = 0
    refused: int = 0
    failed: int = 0  # could not be opened; the next run tries again
    duplicates: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    images_per_second: float = 0.0
    ignored: int = 0  # files that are no scans: texts, tables
    done: int = 0  # scans that need no more work, for the progress bar

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        del values["done"]
        values["reasons"] = dict(sorted(self.reasons.items()))
        values["seconds"], values["images_per_second"] = round(self.seconds, 2), round(self.images_per_second, 2)
        return values

    def add_scan(self, outcome: str, reason: str = "") -> None:
        """Count a scan of which no frame was read."""
        self.done += 1
        if outcome in ("quarantined", "refused", "failed"):
            setattr(self, outcome, getattr(self, outcome) + 1)
            self._because(reason)
        elif outcome == "duplicate":
            self.duplicates += 1
            self._because("same-file")

    def add(self, result: ScanResult) -> None:
        """Count a scan that was read, or tried."""
        self.add_scan(result.outcome, result.reason)
        self.frames += result.frames
        self.kept += result.kept
        self.duplicates += result.duplicates
        if result.duplicates:
            self._because("near-duplicate", result.duplicates)
        for reason, indices in result.quarantined.items():
            self.quarantined += len(indices)
            self._because(reason, len(indices))

    def measure(self, frames: int, seconds: float) -> None:
        """Rates of this call: frames read in it over its time."""
        self.seconds, self.images_per_second = seconds, frames / seconds if seconds > 0 else 0.0

    def _because(self, reason: str, count: int = 1) -> None:
        self.reasons = dict(Counter(self.reasons) + Counter({reason: count}))


Progress = Callable[[PrepareSummary], None]
