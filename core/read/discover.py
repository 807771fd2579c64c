"""Finding scans: walk folders and archives, tell formats by their first bytes, name each scan by an HMAC."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from usfmae.core.config.read import ReadSettings
from usfmae.core.errors import SourceError
from usfmae.core.flow import Quarantined, Scan, Trail, secret_id
from usfmae.core.read.facts import Facts
from usfmae.core.read.reader import READERS, reader
from usfmae.core.read.reasons import Refused, Unreadable
from usfmae.core.read.source import opened

HEAD = 4096


@dataclass(frozen=True)
class Candidate:
    """A file, or a member of an archive, that was found. Holds a path: in memory only."""

    path: Path
    member: str = ""
    folder: str = ""  # below the source, for grouping; "" where it lies in the source itself
    size: int = 0
    stamp: int = 0  # modification time in ns

    def place(self, secret: bytes) -> str:
        """A name for this file at this place and time, to know it again without reading it."""
        return secret_id(secret, "place", str(self.path), self.member, str(self.size), str(self.stamp))


def walk(sources: Sequence[Path]) -> Iterator[Candidate]:
    """Every regular file below the sources in a stable order; archives are opened, links are not followed.

    Raises SourceError where a source is absent or unreadable.
    """
    for source in sources:
        if not source.exists():
            raise SourceError(f"source {source}", "does not exist", "give an existing file or folder")
        files = (
            [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file() and not p.is_symlink())
        )
        for path in files:
            folder = "" if path == source else path.parent.relative_to(source).as_posix().removeprefix(".")
            status = path.stat()
            found = Candidate(path.resolve(), "", folder, status.st_size, status.st_mtime_ns)
            yield from _members(found) if zipfile.is_zipfile(path) else (found,)


def _members(archive: Candidate) -> Iterator[Candidate]:
    with zipfile.ZipFile(archive.path) as opened_archive:
        for info in sorted(opened_archive.infolist(), key=lambda i: i.filename):
            if not info.is_dir():
                folder = f"{archive.folder}/{archive.path.name}/{Path(info.filename).parent}"
                yield Candidate(archive.path, info.filename, folder, info.file_size, archive.stamp)


@dataclass(frozen=True)
class Identified:
    """A scan and what its header tells, without identifiers."""

    scan: Scan
    facts: Facts
    study: str  # HMAC of the study, "" where there is none


def identify(candidate: Candidate, secret: bytes, settings: ReadSettings) -> Identified | Quarantined | Refused | None:
    """What a file is; None where it is no scan at all (a text, a table)."""
    bare = Scan(candidate.path, "", Trail(), candidate.member)
    content = ""
    try:
        with opened(bare, settings) as file:
            head = file.read(HEAD)
            file.seek(0)
            content = secret_id(secret, "scan", hashlib.file_digest(file, "sha256").digest())
        kind = _kind(head, candidate)
        if not kind:
            return None
        scan = Scan(candidate.path, kind, Trail(content), candidate.member)
        known = reader(kind).facts(scan, settings)
    except Unreadable as error:
        return Quarantined(error.reason, Trail(content or candidate.place(secret)), error.why)
    except Refused as error:
        return error
    group = known.patient or known.study or _place_group(candidate, settings, content)
    scan = Scan(scan.path, kind, scan.trail, scan.member, secret_id(secret, "group", group))
    return Identified(scan, known, secret_id(secret, "study", known.study) if known.study else "")


def _place_group(candidate: Candidate, settings: ReadSettings, content: str) -> str:
    return candidate.folder if candidate.folder and settings.group_by == "folder" else content


def _kind(head: bytes, candidate: Candidate) -> str:
    for kind in READERS:
        if reader(kind).recognises(head):
            return kind
    name = Path(candidate.member or candidate.path.name)
    if not head:
        raise Unreadable("empty", "zero bytes")
    if any(name.suffix.lower() in reader(kind).SUFFIXES for kind in READERS) and not _is_text(head):
        raise Unreadable("unknown-format", "the content fits no format that is read")
    return ""


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode()
    return all(c.isprintable() or c in "\r\n\t\f" for c in text)


def discover(sources: Sequence[Path], secret: bytes, settings: ReadSettings) -> Iterator[Scan | Quarantined]:
    """Every scan below the sources, and what looks like one but cannot be read. Refused objects are left out."""
    for candidate in walk(sources):
        found = identify(candidate, secret, settings)
        if isinstance(found, Identified):
            yield found.scan
        elif isinstance(found, Quarantined):
            yield found
