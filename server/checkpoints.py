"""A checkpoint must be what the ledger says it is before anything is built on it: disks lose and change bytes."""

from __future__ import annotations

from pathlib import Path

from usfmae.core.errors import CheckpointError
from usfmae.core.tensors import TensorFile


def check(file: Path, wanted: str = "") -> str:
    """The hash of a checkpoint's weights. CheckpointError unless it is `wanted`, and what the file says of itself."""
    with TensorFile(file) as tensors:
        content, declared = tensors.id(), tensors.metadata.get("content", "")
    for expected, where in ((wanted or declared, "the ledger"), (declared, "the file itself")):
        if content != expected:
            why = f"holds {content[:12]}, not {expected[:12]} as {where} says: it was changed or damaged"
            raise CheckpointError(f"checkpoint {file}", why, "restore this file from a backup ('usfmae-server verify')")
    return content


class CheckedFiles:
    """Checks each file once, and again where it has changed on disk since."""

    def __init__(self) -> None:
        self.seen: dict[Path, tuple[int, int, int, str]] = {}

    def check(self, file: Path, wanted: str = "") -> str:
        """As `check`; a file that has not changed is not read again."""
        checked = self.seen.get(file)
        if checked is None or checked[:3] != _state(file) or (wanted and checked[3] != wanted):
            self.written(file, check(file, wanted))
        return self.seen[file][3]

    def written(self, file: Path, content: str) -> None:
        """This process has just written the file, and hashed it as it did."""
        self.seen = {file: (*_state(file), content)}


def _state(file: Path) -> tuple[int, int, int]:
    """What changes when a file is written to."""
    try:
        facts = file.stat()
    except OSError as error:
        raise CheckpointError(f"checkpoint {file}", error.strerror or str(error), "restore it from a backup") from None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns
