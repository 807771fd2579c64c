"""Finding scans: walk folders and archives, tell formats by their first bytes, name each scan by an HMAC."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import posixpath
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, cast

from pydantic import AfterValidator, Field

from usfmae.core.config.read import ReadSettings
from usfmae.core.errors import SourceError
from usfmae.core.read.facts import Facts, RefusedScan, Unreadable, guarded
from usfmae.core.read.reader import READERS, reader
from usfmae.core.read.source import name_of, opened, opened_data_file
from usfmae.core.types import Quarantined, Scan, Trail, secret_id

HEAD = 4096
DIRECTORY = "DICOMDIR"
GZIP_MAGIC = b"\x1f\x8b"
LINK_LOOP, LINK_OUTSIDE = "link-loop", "link-outside"  # reasons
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
NOT_ARCHIVES = (".docx", ".xlsx", ".pptx", ".odt", ".ods", ".odp", ".jar", ".whl", ".npz", ".epub")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file, or a member of an archive, that was found. Holds a path: in memory only.

    Hundreds of thousands are kept at once: the files of a folder share its name, and the path is made when asked for.
    """

    directory: str  # absolute
    name: str
    member: str = ""
    folder: str = ""  # below the source, for grouping; "" where it lies in the source itself
    size: int = 0
    stamp: int = 0  # modification time in ns
    broken: str = ""  # reason why it cannot be opened

    @classmethod
    def of(cls, path: Path, member: str = "", size: int = 0, stamp: int = 0) -> Candidate:
        return cls(str(path.parent), path.name, member, "", size, stamp)

    @property
    def path(self) -> Path:
        return Path(self.directory, self.name)

    def place(self, secret: bytes) -> str:
        """A name for this file at this place and time, to know it again without reading it."""
        where = os.fsencode(self.path), os.fsencode(self.member)  # names in any encoding
        return secret_id(secret, "place", *where, str(self.size), str(self.stamp))

    def as_broken(self, reason: str) -> Candidate:
        return replace(self, broken=reason)


@dataclass(frozen=True)
class Listing:
    """The files of one folder, as a walk found them, sorted by name."""

    folder: str  # absolute
    below: str  # below the source, for grouping; "" for the source itself
    parent: str = ""  # the folder in which it was found, "" for a source
    files: tuple[tuple[str, int, int], ...] = ()  # (name, size in bytes, modification time in ns) of regular files
    broken: tuple[tuple[str, str], ...] = ()  # (name, reason) of what could not be looked at; "" is the folder itself
    alone: bool = False  # one file that was named as a source

    @property
    def place(self) -> str:
        """The path that was listed."""
        return f"{self.folder}/{self.files[0][0]}" if self.alone and self.files else self.folder

    def candidates(self) -> Iterator[Candidate]:
        for name, size, stamp in self.files:
            yield Candidate(self.folder, name, "", self.below, size, stamp)
        for name, reason in self.broken:
            yield Candidate(self.folder, name, "", self.below, broken=reason)


def walk(sources: Sequence[Path], skip: Sequence[Path] = (), follow: bool = True) -> Iterator[Candidate]:
    """Every regular file below the sources in a stable order, without what lies below `skip`; see `listings`.

    Archives come as one candidate each, see `is_archive` and `members`.
    """
    for listing in listings(sources, skip, follow):
        yield from listing.candidates()


def listings(
    sources: Sequence[Path], skip: Sequence[Path] = (), follow: bool = True, within: Sequence[Path] = ()
) -> Iterator[Listing]:
    """Every folder below the sources in a stable order, without what lies below `skip`.

    Each folder comes once, whatever links lead to it. With `follow` links to folders outside are followed, after all
    that lies in the sources themselves; without, and for files always, a link that leads out is `broken`;
    what lies in `within` is not outside either. Raises SourceError where a source is absent.
    """
    check_sources(sources)
    walk_ = _Walk({str(path.resolve()) for path in skip}, follow)
    for path in within:
        walk_.enter(path)
    places = []
    for source in sources:
        if source.name.upper() == DIRECTORY and source.is_file():
            source = source.parent  # it lists the file-set below its own folder (PS3.10 8.6)
        places.append(source.absolute())
        walk_.enter(places[-1])
    for place in places:
        if place.is_file():
            yield _listing(str(place.parent), "", "", [place], alone=True)
        else:
            yield from walk_.below(str(place))
    yield from walk_.linked()


def check_sources(sources: Sequence[Path]) -> None:
    """SourceError where one of them is absent, or a pipe or a device."""
    for source in sources:
        if not source.exists():
            raise SourceError(f"source {source}", "does not exist", "give an existing file or folder")
        if not (source.is_file() or source.is_dir()):
            raise SourceError(f"source {source}", "is neither a file nor a folder", "give a file or a folder")


class _Walk:
    """One walk over sources, which knows the folders it has been in by device and inode."""

    def __init__(self, skipped: set[str], follow: bool) -> None:
        self.skipped, self.follow = skipped, follow
        self.roots: list[str] = []  # real paths; a link to a file has to lead below one of them
        self.visited: set[tuple[int, int]] = set()
        self.above: set[tuple[int, int]] = set()  # the folders that the sources lie in: a link to one is a loop
        self.links: list[tuple[os.DirEntry[str], str, str]] = []  # (link to a folder, below the source, its folder)

    def enter(self, source: Path) -> None:
        real = source.resolve()
        self.roots.append(str(real))
        for folder in real.parents:
            with contextlib.suppress(OSError):
                self.above.add(_identity(folder.stat()))

    def below(self, start: str, start_below: str = "", start_parent: str = "") -> Iterator[Listing]:
        """The folders from `start` on, each before the folders in it."""
        waiting = [(start, start_below, start_parent)]
        while waiting:
            folder, below, parent = waiting.pop()
            try:
                identity = _identity(os.stat(folder))  # noqa: PTH116 - paths are text here
                with os.scandir(folder) as iterator:
                    entries = sorted(iterator, key=lambda entry: entry.name)
            except OSError as error:  # a folder that cannot be listed is said, not passed over
                yield Listing(folder, below, parent, broken=(("", f"os-{error.errno}"),))
                continue
            if identity in self.visited:
                continue
            self.visited.add(identity)
            inside = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
            others = [entry for entry in entries if not entry.is_dir(follow_symlinks=False)]
            folders = {entry.name for entry in others if entry.is_symlink() and _is_folder(entry)}
            self.links += [(entry, below, folder) for entry in others if entry.name in folders]
            files = [entry for entry in others if entry.name not in folders]
            yield _listing(folder, below, parent, files, leads_out=self._leads_out)
            for entry in reversed(inside):
                if not (self.skipped and os.path.realpath(entry.path) in self.skipped):
                    waiting.append((entry.path, f"{below}/{entry.name}" if below else entry.name, folder))

    def linked(self) -> Iterator[Listing]:
        """The folders that only links lead to."""
        while self.links:
            entry, below, parent = self.links.pop(0)
            try:
                identity = _identity(entry.stat())
            except OSError as error:
                yield Listing(entry.path, below, parent, broken=(("", f"os-{error.errno}"),))
                continue
            real = os.path.realpath(entry.path)
            if identity in self.visited or any(real == p or real.startswith(p + "/") for p in self.skipped):
                continue
            if not self.follow or identity in self.above:
                yield Listing(entry.path, below, parent, broken=(("", LINK_LOOP if self.follow else LINK_OUTSIDE),))
                continue
            self.roots.append(real)
            yield from self.below(entry.path, f"{below}/{entry.name}" if below else entry.name, parent)

    def _leads_out(self, path: str) -> bool:
        real = os.path.realpath(path)
        return not any(real == root or real.startswith(root.rstrip("/") + "/") for root in self.roots)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _listing(
    folder: str,
    below: str,
    parent: str,
    entries: Sequence[Any],
    alone: bool = False,
    leads_out: Callable[[str], bool] = lambda path: False,
) -> Listing:
    """Entries with a `name` and a `stat()`; pipes, devices and sockets are left out."""
    files, broken = [], []
    for entry in entries:
        try:
            status = entry.stat()
            if not alone and entry.is_symlink() and leads_out(entry.path):
                broken.append((entry.name, LINK_OUTSIDE))
                continue
        except OSError as error:
            broken.append((entry.name, LINK_LOOP if error.errno == errno.ELOOP else f"os-{error.errno}"))
            continue
        if stat.S_ISREG(status.st_mode):
            files.append((entry.name, status.st_size, status.st_mtime_ns))
    return Listing(folder, below, parent, tuple(files), tuple(broken), alone)


def is_archive(candidate: Candidate) -> bool:
    """A zip, by its first bytes; office documents and Python archives, which are zips too, are not opened."""
    if candidate.member or candidate.name.lower().endswith(NOT_ARCHIVES):
        return False
    try:
        with candidate.path.open("rb") as file:
            return file.read(4) in ZIP_MAGIC
    except OSError:
        return False


def members(archive: Path, settings: ReadSettings) -> list[tuple[str, int]]:
    """(name, size) of each file in an archive, sorted. Raises Unreadable."""
    try:
        with opened(Scan(archive, ""), settings) as file, zipfile.ZipFile(file) as content:
            listed = sorted((info.filename, info.file_size) for info in content.infolist() if not info.is_dir())
    except Exception as error:  # a damaged directory ends in many ways
        raise Unreadable("bad-archive", type(error).__name__) from None
    if len(listed) > settings.max_members:
        raise Unreadable("too-many-members", f"{len(listed)} members, the limit is {settings.max_members}")
    return listed


def member_candidates(archive: Candidate, listed: Iterable[tuple[str, int]]) -> Iterator[Candidate]:
    for name, size in listed:
        folder = "/".join(part for part in (archive.folder, archive.name, posixpath.dirname(name)) if part)
        yield Candidate(archive.directory, archive.name, name, folder, size, archive.stamp)


@dataclass(frozen=True)
class Identified:
    """A scan and what its header tells, without identifiers."""

    scan: Scan
    facts: Facts
    study: str  # HMAC of the study, "" where there is none


def _a_readers_name(kind: str) -> str:
    if kind not in ("", *READERS):
        raise ValueError("no reader of that name")
    return kind


Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$", max_length=4096)]
Count = Annotated[int, Field(ge=0, le=1 << 40)]
Code = Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9-]{0,47})?$")]


@dataclass(frozen=True)
class Examined:
    """What opening a file told, before it is named under the site's secret. Holds identifiers: in memory only.

    The bounds hold where it comes out of a decoding process.
    """

    outcome: Literal["scan", "quarantined", "refused", "failed", "none"]  # "failed": could not be opened
    digest: Hex = ""  # SHA-256 of the content (and of a second file that holds its pixels), in hex
    reason: Code = ""
    detail: Annotated[str, Field(max_length=200)] = ""  # for people; nothing out of the file
    kind: Annotated[str, AfterValidator(_a_readers_name)] = ""
    format: Annotated[str, Field(max_length=64)] = ""
    frames: Count = 0
    planned: Count = 0
    device: Annotated[str, Field(max_length=64)] = ""
    notes: tuple[Code, ...] = ()
    patient: Hex = ""  # bytes in hex, since a header's text may be in any encoding
    study: Hex = ""


def examine(scan: Scan, settings: ReadSettings) -> Examined:
    """What a file is, by its content. Raises OSError where it cannot be opened.

    `scan` needs a path and a member alone.
    """
    digest = ""
    try:
        with opened(scan, settings) as file:
            head = file.read(HEAD)
            first = _digest(file)
        digest = first.hex()
        kind = _kind(head, name_of(scan), bool(scan.member))
        if not kind:
            return Examined("none", digest)
        with guarded("unreadable"):
            facts = reader(kind).facts(scan, settings)
        if facts.data_file:  # equal headers may stand over different pixels
            with opened_data_file(scan, facts.data_file, settings) as file:
                digest = hashlib.sha256(first + _digest(file)).hexdigest()
    except Unreadable as error:
        return Examined("quarantined", digest, error.reason, error.why[:200])
    except RefusedScan as error:
        return Examined("refused", digest, error.reason, error.why[:200])
    return Examined(
        "scan",
        digest,
        kind=kind,
        format=facts.format[:64],
        frames=facts.frames,
        planned=facts.planned,
        device="".join(c for c in facts.device if c.isprintable()),
        notes=facts.notes,
        patient=facts.patient.encode(errors="surrogateescape")[:2048].hex(),
        study=facts.study.encode(errors="surrogateescape")[:2048].hex(),
    )


def named(
    examined: Examined, candidate: Candidate, secret: bytes, settings: ReadSettings
) -> Identified | Quarantined | RefusedScan | None:
    """The scan under names that say nothing to anyone without the secret; None for what is no scan at all."""
    content = secret_id(secret, "scan", bytes.fromhex(examined.digest)) if examined.digest else ""
    if examined.outcome == "none":
        return None
    if examined.outcome == "refused":
        return RefusedScan(examined.reason, examined.detail)
    if examined.outcome == "quarantined":
        return Quarantined(examined.reason, Trail(content or candidate.place(secret)), examined.detail)
    group = secret_id(secret, "group", *_group(examined, candidate, settings, content))
    scan = Scan(candidate.path, examined.kind, Trail(content), candidate.member, group)
    facts = Facts(examined.format, examined.frames, examined.planned, examined.device, notes=examined.notes)
    return Identified(scan, facts, secret_id(secret, "study", bytes.fromhex(examined.study)) if examined.study else "")


def identify(
    candidate: Candidate, secret: bytes, settings: ReadSettings
) -> Identified | Quarantined | RefusedScan | None:
    """What a file is; None where it is no scan at all (a text, a table). Raises OSError where it cannot be opened.

    In this process, for tests and tools. `prepare` has `examine` run in a decoding process, `named` outside of it.
    """
    bare = Scan(candidate.path, "", Trail(), candidate.member)
    return named(examine(bare, settings), candidate, secret, settings)


def _digest(file: BinaryIO) -> bytes:
    file.seek(0)
    return hashlib.file_digest(cast(Any, file), "sha256").digest()


def _group(examined: Examined, candidate: Candidate, settings: ReadSettings, content: str) -> tuple[str, bytes]:
    """What must stay on one side of a split: the patient, else the study, else the folder, else the file alone."""
    if examined.patient:
        return "patient", bytes.fromhex(examined.patient)
    if examined.study:
        return "study", bytes.fromhex(examined.study)
    if candidate.folder and settings.group_by == "folder":
        return "folder", candidate.folder.encode(errors="surrogateescape")
    return "file", content.encode()


def _kind(head: bytes, name: str, is_member: bool) -> str:
    """The reader's name, "" for what is no scan. Raises Unreadable for what should be one."""
    if name.upper() == DIRECTORY:
        return ""
    for kind in READERS:
        if reader(kind).recognises(head):
            return kind
    if head.startswith(ZIP_MAGIC) and is_member:
        raise Unreadable("nested-archive", "an archive inside an archive is not opened")
    if head.startswith(GZIP_MAGIC):
        raise Unreadable("packed-file", "gzip, and no volume in it")
    suffix = Path(name).suffix.lower()
    expected = not name.startswith(".") and any(suffix in reader(kind).SUFFIXES for kind in READERS)
    if not head and expected:
        raise Unreadable("empty", "zero bytes")
    if expected and (suffix or not _is_text(head)):
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
    """Every scan below the sources, and what looks like one but cannot be read. Refused objects are left out.

    In this process and in order; `prepare` does the same in processes that a hostile file may end.
    """
    for candidate in walk(sources, follow=settings.follow_links):
        if candidate.broken:
            yield Quarantined(candidate.broken, Trail(candidate.place(secret)))
            continue
        try:
            several = members(candidate.path, settings) if is_archive(candidate) else None
        except Unreadable as error:
            yield Quarantined(error.reason, Trail(candidate.place(secret)), error.why)
            continue
        for one in (candidate,) if several is None else member_candidates(candidate, several):
            result = identify(one, secret, settings)
            if isinstance(result, Identified):
                yield result.scan
            elif isinstance(result, Quarantined):
                yield result
