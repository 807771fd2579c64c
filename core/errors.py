"""Every error a person may see, and the exit code it ends the command with.

    UsfmaeError                 1   a bug, or an error without a better place
    ├── UsageError              2   the command line asks for something that cannot be
    ├── ConfigError             3   a configuration file, override or environment variable
    ├── SourceError             4   data that should be read: scans, corpora, labels
    │   ├── CorpusError         4   a shard or index that is damaged or changed
    │   └── CheckpointError     4   weights that are damaged, foreign or of another shape
    ├── QuarantineLimitError    5   more scans went to quarantine than the site allows
    ├── NetworkError            6   DNS, proxy, TLS, refused connection, unregistered key
    ├── ResourceError           7   disk, memory, GPU, a missing program such as Tesseract
    ├── PolicyError             8   refused by a rule: admission, egress, forgetting budget
    └── TryLaterError          75   quiet hours, paused

An error says what failed (with the value), why, and what to do about it. It never shows a traceback
for a user's mistake, and never carries an identifier of a patient.
"""

from __future__ import annotations

import importlib.util


class UsfmaeError(Exception):
    """Base of all errors meant for people: `what - why - do`."""

    exit_code = 1

    def __init__(self, what: str, why: str = "", do: str = "") -> None:
        self.what, self.why, self.do = what, why, do
        super().__init__(what, why, do)

    def __str__(self) -> str:
        return " - ".join(part for part in (self.what, self.why, self.do) if part)


class UsageError(UsfmaeError):
    exit_code = 2


class ConfigError(UsfmaeError):
    exit_code = 3


class SourceError(UsfmaeError):
    exit_code = 4


class CorpusError(SourceError):
    """A shard or its index is missing, damaged, or not the one a run was started with."""


class CheckpointError(SourceError):
    """Weights that cannot be used as asked."""


class QuarantineLimitError(UsfmaeError):
    exit_code = 5


class NetworkError(UsfmaeError):
    exit_code = 6


class ResourceError(UsfmaeError):
    exit_code = 7


class PolicyError(UsfmaeError):
    exit_code = 8


class TryLaterError(UsfmaeError):
    exit_code = 75


def needs(library: str, extra: str) -> None:
    """ResourceError where an optional library is missing."""
    if importlib.util.find_spec(library) is None:
        raise ResourceError(f"library {library}", "is not installed", f"pip install 'usfmae[{extra}]'")
