"""A backup of a site or an aggregator: one tar file of chosen files, each listed with its SHA-256, that restores.

It is taken beside a running program: databases are copied by SQLite itself, the audit log up to its last whole line,
and where any other file changed meanwhile the copy begins again. It holds private keys, so it is readable by its owner
alone; whoever stores it elsewhere encrypts it first.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from usfmae.core import __version__, audit
from usfmae.core.errors import PolicyError, ResourceError, SourceError, UsageError
from usfmae.core.files import flush, replacing

FORMAT = "usfmae-backup-1"
LIST = "backup.json"  # the last member: what the others are
TRIES = 5  # copies begun before we say that the folder does not stand still
LARGEST_LIST = 2**28  # bytes of LIST that are read at most


@dataclass(frozen=True)
class BackupContent:
    """What belongs into a backup: `kind` (site or coordinator), its name, and how its files are found."""

    kind: str
    name: str
    root: Path
    files: Callable[[], Iterable[Path]]


def write(content: BackupContent, out: Path) -> dict[str, Any]:
    """Write the backup to the new file `out` (mode 0600); what was written, for people.

    UsageError where `out` exists, ResourceError where files change faster than they can be copied.
    """
    if out.exists():
        raise UsageError(f"file {out}", "exists already", "give another name; backups are never written over")
    for _ in range(TRIES):
        before = _stamps(content)
        with replacing(out) as partial:
            partial.unlink(missing_ok=True)
            partial.touch(mode=0o600)
            listed = _written(content, partial)
            unchanged = _stamps(content) == before
            if not unchanged:
                partial.write_bytes(b"")
        if unchanged:
            return _about(content, out, listed)
        out.unlink()
    raise ResourceError(f"backup of {content.root}", "files change while they are copied", "try again in a minute")


def _about(content: BackupContent, out: Path, listed: dict[str, list[Any]]) -> dict[str, Any]:
    return {
        "file": str(out),
        "kind": content.kind,
        "name": content.name,
        "files": len(listed),
        "bytes": out.stat().st_size,
    }


def _stamps(content: BackupContent) -> dict[Path, tuple[int, int]]:
    """Size and time of each file that must not change during the copy; logs and databases may."""
    stamps = {}
    for path in content.files():
        if path.suffix not in (".sqlite", ".jsonl", ".head"):
            status = path.stat()
            stamps[path] = (status.st_size, status.st_mtime_ns)
    return stamps


def _written(content: BackupContent, partial: Path) -> dict[str, list[Any]]:
    """Every file into the tar file; name -> [bytes, SHA-256]."""
    listed: dict[str, list[Any]] = {}
    with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(set(content.files())):
            name = path.relative_to(content.root).as_posix()
            for member, file in _copies(path, name, partial.parent):
                with file:
                    listed[member] = _add(tar, member, file)
        contents = {
            "format": FORMAT,
            "kind": content.kind,
            "name": content.name,
            "version": __version__,
            "time": time.time(),
            "files": listed,
        }
        _add(tar, LIST, io.BytesIO(json.dumps(contents, indent=1, sort_keys=True).encode()))
    return listed


def _copies(path: Path, name: str, beside: Path) -> Iterator[tuple[str, Any]]:
    """A file as it can be stored: a database by SQLite's own copy, the audit log with the head that belongs to it."""
    if path.suffix == ".sqlite":
        with tempfile.TemporaryDirectory(prefix=".backup-", dir=beside) as folder:
            copy = Path(folder) / "copy"
            with closing(sqlite3.connect(path, timeout=60)) as here, closing(sqlite3.connect(copy)) as there:
                here.backup(there)
            yield name, copy.open("rb")
    elif path.suffix == ".head":
        return  # beside its log
    elif path.suffix == ".jsonl":
        head = audit.head_file(path)
        noted = head.read_bytes() if head.exists() else b""  # before the log: an older head is still in it
        text = path.read_bytes()
        yield name, io.BytesIO(text[: text.rfind(b"\n") + 1])
        if noted:
            yield str(PurePosixPath(name).with_suffix(".head")), io.BytesIO(noted)
    else:
        yield name, path.open("rb")


class _Hashed:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: Any) -> None:
        self.file, self.sum = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece: bytes = self.file.read(size)
        self.sum.update(piece)
        return piece


def _add(tar: tarfile.TarFile, name: str, file: Any) -> list[Any]:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = file.seek(0, os.SEEK_END), 0o600, int(time.time())
    file.seek(0)
    hashed = _Hashed(file)
    tar.addfile(entry, hashed)
    return [entry.size, hashed.sum.hexdigest()]


def restore(file: Path, kind: str, root: Path) -> dict[str, Any]:
    """Put the files of a backup below `root`, which is absent or empty; what was restored.

    Everything is checked before `root` comes to be. UsageError where `root` holds something or the backup is of the
    other program, SourceError where the file is damaged, PolicyError where a file in it is not the one that was listed.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(
            f"folder {root}", "is not empty", "restore into a new folder, then put it in the old one's place"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=root.parent) as folder:
        place = Path(folder) / "whole"
        place.mkdir(mode=0o700)
        about = _extracted(file, place)
        if about.get("kind") != kind:
            raise UsageError(f"backup {file}", f"is of a {about.get('kind')}", f"give a backup of a {kind}")
        if root.exists():
            root.rmdir()
        place.rename(root)
    flush(root.parent)
    return {**about, "files": len(about["files"])}


def _extracted(file: Path, place: Path) -> dict[str, Any]:
    sums: dict[str, list[Any]] = {}
    text = b""
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                source = tar.extractfile(member) if member.isreg() else None
                if source is None:
                    raise PolicyError(f"backup {file}", f"{member.name!r:.80} is no plain file", "refused")
                if member.name == LIST:
                    text = source.read(LARGEST_LIST)
                else:
                    sums[member.name] = _stored(source, _inside(place, member.name, file))
        about: dict[str, Any] = json.loads(text)
        listed = about["files"]
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"backup {file}", f"is damaged or no backup: {error}", "take another one") from None
    if about.get("format") != FORMAT:
        raise SourceError(
            f"backup {file}", f"is of the format {about.get('format')!r:.40}", "restore it with its version"
        )
    wrong = sorted(name for name in listed.keys() | sums.keys() if listed.get(name) != sums.get(name))
    if wrong:
        raise PolicyError(f"backup {file}", f"{wrong[0]} is not the file that was listed", "take another backup")
    return about


def _inside(place: Path, name: str, file: Path) -> Path:
    """Where a member goes; PolicyError where its name leads out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise PolicyError(f"backup {file}", f"{name!r:.80} leads out of the folder", "refused")
    return place / path


def _stored(source: Any, path: Path) -> list[Any]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    total = hashlib.sha256()
    size = 0
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
        while piece := source.read(2**20):
            total.update(piece)
            size += target.write(piece)
        target.flush()
        os.fsync(target.fileno())
    return [size, total.hexdigest()]
