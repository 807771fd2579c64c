"""The first pass: what each file is. A folder that has not changed is passed over, a known file is not opened again."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from usfmae.core.config import ReadSettings, Settings
from usfmae.core.errors import UsfmaeError
from usfmae.core.prepare.ledger import UNFORESEEN, CorpusLedger, FolderRow
from usfmae.core.prepare.ledger_queries import KnownScan
from usfmae.core.prepare.withdraw import REASON, Withdrawn
from usfmae.core.read.discover import Candidate, Listing, is_archive, listings, member_candidates
from usfmae.core.sandbox.pool import AHEAD, Pool
from usfmae.core.sandbox.worker import StoppedError, Worker
from usfmae.core.types import content_id, secret_id

logger = logging.getLogger(__name__)

FOLDERS_AT_ONCE = 256  # asked of the ledger in one query
MOST_MEMBERS = 10_000_000  # of an archive in which a known scan is looked for; the process's memory is the limit
BATCH = 64  # identifications written at once
SAVE_SECONDS = 1.0  # the longest time a new identification stays in memory
# (absolute path, member) of a file -> the public data set it is from, and what a split must not part it from.
Chosen = Mapping[tuple[Path, str], tuple[str, str]]


@dataclass
class Identification:
    """What a pass over the sources found."""

    files: dict[int, Candidate] = field(default_factory=dict)  # where each scan lies that waits to be cleaned
    failed: Counter[str] = field(default_factory=Counter)  # reason -> files that could not be opened this time
    met: int = 0  # files so far, for the progress bar


@dataclass(frozen=True)
class _File:
    """A file that the ledger does not know; `answer` will say what it is."""

    folder: int
    key: bytes
    candidate: Candidate
    answer: Future[dict[str, Any]]


@dataclass(frozen=True)
class _End:
    """All files of a folder were met."""

    folder: int
    listing: bytes
    arrived: tuple[bytes, ...]  # known files that were elsewhere before
    gone: tuple[bytes, ...]


def folder_key(secret: bytes, path: str) -> bytes:
    """The name of a folder, or of an archive, in the ledger: a keyed hash of its path."""
    return hashlib.blake2b(os.fsencode(path), key=secret[:64], digest_size=16, person=b"folder").digest()


def place_key(secret: bytes, candidate: Candidate) -> bytes:
    return bytes.fromhex(candidate.place(secret))[:16]


@dataclass(frozen=True)
class Sources:
    """Folders, files and archives to read, and what the caller knows of the scans in them."""

    paths: Sequence[Path]
    only: Chosen | None = None  # files known to be scans; no others are read
    names: Mapping[Path, str] = field(default_factory=dict)  # name of a path of `paths`, as its scans' data set


def identified(
    sources: Sources, ledger: CorpusLedger, pool: Pool, progress: Callable[[int], None] | None = None
) -> Identification:
    """Write into the ledger what every file below the sources is; scans that wait to be cleaned come with their place.

    Of equal files the first counts, the others are duplicates of it. `progress` hears how many files were met so far.
    Inside `ledger.writing()`.
    """
    return _Pass(sources, ledger, pool, progress).run()


class _Pass:
    """One pass over the sources. Files are identified ahead in several processes and written in the order of the walk."""

    def __init__(
        self, sources: Sources, ledger: CorpusLedger, pool: Pool, progress: Callable[[int], None] | None
    ) -> None:
        self.sources, self.ledger, self.pool, self.progress = sources, ledger, pool, progress
        self.secret, self.only = pool.secret, sources.only
        self.names = {path.absolute(): name for path, name in sources.names.items()}
        only = sources.only
        self.chosen = None if only is None else {path for path, _ in only}
        self.identification = Identification()
        self.seen = bytearray()  # by the number of a folder: 1 where it was met
        self.incomplete: set[int] = set()  # folders with a file that could not be opened
        self.open, self.archives = ledger.open_folders(), ledger.archives()
        self.withdrawn = Withdrawn.of(ledger.corpus).groups
        # Folders are looked at anew where the caller chooses other files.
        self.salt = b"" if only is None else content_id(*(str(item) for item in sorted(only.items()))).encode()

    def run(self) -> Identification:
        waiting: deque[_File | _End] = deque()
        submitted = written = 0
        saved = time.monotonic()
        for item in self._items(
            listings(self.sources.paths, (self.ledger.corpus,), self.pool.settings.read.follow_links)
        ):
            waiting.append(item)
            submitted += isinstance(item, _File)
            while waiting and (submitted > AHEAD * self.pool.size or not _is_slow(waiting[0])):
                new = self._write(waiting.popleft())
                submitted, written = submitted - new, written + new
            if written >= BATCH or time.monotonic() - saved > SAVE_SECONDS:
                self.ledger.save()
                written, saved = 0, time.monotonic()
        for item in waiting:
            self._write(item)
        self.ledger.retire(self._was_met)
        return self.identification

    # The walk ---------------------------------------------------------------------------------------------------

    def _items(self, listings: Iterator[Listing]) -> Iterator[_File | _End]:
        """The files of every folder that has changed or holds work, each folder ended by an `_End`."""
        while chunk := list(islice(listings, FOLDERS_AT_ONCE)):
            keys = [folder_key(self.secret, listing.place) for listing in chunk]
            rows = self.ledger.folders(keys)
            for listing, key in zip(chunk, keys, strict=True):
                yield from self._listed(listing, key, rows.get(key))
            if self.progress:
                self.progress(self.identification.met)

    def _listed(self, listing: Listing, key: bytes, row: FolderRow | None) -> Iterator[_File | _End]:
        """One folder: nothing where it is as it was at the last pass and holds no work."""
        if self.chosen is not None:
            listing = _chosen(listing, self.chosen)
        if row is None:
            row = self.ledger.folders([key]).get(key)  # where one source lies below another it is new by now
        if row is not None and self._was_met(row.n):
            return
        self.identification.met += len(listing.files)
        hash_ = self._hash(listing)
        n = self._number(listing, key, row)
        self._meet(n)
        if row is None or row.listing != hash_ or n in self.open or listing.broken:
            yield from self._folder(n, hash_, listing.candidates())
        else:
            for archive in self.archives.get(n, ()):
                self._meet(archive)

    def _number(self, listing: Listing, key: bytes, row: FolderRow | None) -> int:
        """The folder's number in the ledger; one that is new, or was a source itself, is noted below its parent."""
        if row is not None and (row.parent or not listing.parent):
            return row.n
        above = self.ledger.folders([folder_key(self.secret, listing.parent)]) if listing.parent else {}
        parent = next((folder.n for folder in above.values()), 0)
        if row is None:
            return self.ledger.add_folder(key, parent)
        self.ledger.put_below(row.n, parent)
        return row.n

    def _folder(self, n: int, hash_: bytes, candidates: Iterator[Candidate]) -> Iterator[_File | _End]:
        rows, arrived = self.ledger.places(n), []
        for candidate in candidates:
            key = place_key(self.secret, candidate)
            row = rows.pop(key, None)
            if row is None and (row := self.ledger.elsewhere(key)) is not None:
                arrived.append(key)
            if row is not None and row.outcome == "archive":
                yield from self._archive(n, candidate)
            elif row is not None:
                if row.is_open and row.scan is not None:
                    self.identification.files.setdefault(row.scan, candidate)
            elif not candidate.broken and is_archive(candidate):
                yield from self._new_archive(n, key, candidate)
            elif self.only is None or (candidate.path, candidate.member) in self.only:
                yield _File(n, key, candidate, self.pool.call(_identify, candidate))
        yield _End(n, hash_, tuple(arrived), tuple(rows))

    def _new_archive(self, n: int, key: bytes, archive: Candidate) -> Iterator[_File | _End]:
        answer = self.pool.call(Worker.members, archive).result()
        if answer.get("reason"):
            broken = archive.as_broken(answer["reason"])
            yield _File(n, key, broken, self.pool.call(_identify, broken))
            return
        self.ledger.add_place(n, key, {"outcome": "archive"})
        yield from self._archive(n, archive, answer["members"])

    def _archive(self, n: int, archive: Candidate, members: list[Any] | None = None) -> Iterator[_File | _End]:
        """The members of an archive, which is a folder of its own in the ledger."""
        key = folder_key(self.secret, f"{archive.path}\0")
        hash_ = self._mac(f"{archive.size} {archive.stamp}".encode())
        row = self.ledger.folders([key]).get(key)
        inside = row.n if row else self.ledger.add_folder(key, n, archive=True)
        self._meet(inside)
        if row is not None and row.listing == hash_ and inside not in self.open:
            return
        if members is None:
            members = self.pool.call(Worker.members, archive).result()["members"]
        files = member_candidates(archive, members)
        if self.only is not None:
            files = (one for one in files if (one.path, one.member) in self.only)
        yield from self._folder(inside, hash_, files)

    def _hash(self, listing: Listing) -> bytes:
        lines = "\0".join([f"{name}\0{size}\0{stamp}" for name, size, stamp in listing.files])
        return self._mac(lines.encode(errors="surrogateescape"))

    def _mac(self, content: bytes) -> bytes:
        key = self.secret[:64]
        return hashlib.blake2b(self.salt + content, key=key, digest_size=16, person=b"listing").digest()

    def _meet(self, folder: int) -> None:
        if folder >= len(self.seen):
            self.seen.extend(bytes(max(4096, folder + 1 - len(self.seen))))
        self.seen[folder] = 1

    def _was_met(self, folder: int) -> bool:
        return folder < len(self.seen) and self.seen[folder] == 1

    # What is written --------------------------------------------------------------------------------------------

    def _write(self, item: _File | _End) -> int:
        """Into the ledger; the number of new identifications."""
        if isinstance(item, _End):
            complete = item.folder not in self.incomplete
            self.ledger.settle(item.folder, item.listing if complete else None, item.arrived, item.gone)
            return 0
        answer = _answer(item.answer)
        if answer["outcome"] == "failed":
            self.identification.failed[str(answer.get("reason", ""))] += 1
            self.incomplete.add(item.folder)
        else:
            scan = self.ledger.add_place(item.folder, item.key, self._named(item.candidate, answer))
            if scan is not None:
                self.identification.files.setdefault(scan, item.candidate)
        return 1

    def _named(self, candidate: Candidate, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer with the data set and the group that the caller knows better than the file's header.

        A patient who was taken out of the corpus stays out.
        """
        named = self._by_caller(candidate, answer)
        return {"outcome": "refused", "reason": REASON} if named.get("group") in self.withdrawn else named

    def _by_caller(self, candidate: Candidate, answer: dict[str, Any]) -> dict[str, Any]:
        if self.only is None:
            above = (candidate.path, *candidate.path.parents)
            name = next((self.names[path] for path in above if path in self.names), "") if self.names else ""
            return {**answer, "dataset": name} if name else answer
        dataset, group = self.only[candidate.path, candidate.member]
        return {**answer, "dataset": dataset, "group": secret_id(self.secret, "group", dataset, group)}


def _is_slow(item: _File | _End) -> bool:
    return isinstance(item, _File) and not item.answer.done()


def _answer(future: Future[dict[str, Any]]) -> dict[str, Any]:
    """What a file is; an unforeseen error costs this file alone, which the next run tries again."""
    try:
        return future.result()
    except (UsfmaeError, StoppedError):
        raise
    except Exception as error:
        logger.warning("a file could not be identified: %s", type(error).__name__)
        return {"outcome": "failed", "reason": UNFORESEEN}


def _chosen(listing: Listing, chosen: Collection[Path]) -> Listing:
    folder = Path(listing.folder)
    files = tuple(file for file in listing.files if folder / file[0] in chosen)
    return Listing(listing.folder, listing.below, listing.parent, files, (), listing.alone)


def _identify(worker: Worker, candidate: Candidate) -> dict[str, Any]:
    if candidate.broken:
        outcome = "failed" if candidate.broken.startswith("os-") else "quarantined"
        return {"outcome": outcome, "reason": candidate.broken, "id": candidate.place(worker.secret)}
    return worker.identify(candidate)


def located(
    ledger: CorpusLedger, sources: Sequence[Path], secret: bytes, scans: Sequence[KnownScan]
) -> dict[int, Candidate]:
    """Where scans lie now, by their numbers in the ledger; what is gone or has changed is left out.

    The ledger knows the way as keyed hashes: of each folder on it the names are hashed until one fits.
    """
    candidates = {}
    for scan in scans:
        for folders, key, packed in ledger.way_to(scan.id):
            place = next((p for source in sources if (p := _place(source.absolute(), folders, secret, packed))), None)
            candidate = place and _file(*place, key, secret, packed)
            if candidate:
                candidates[scan.n] = candidate
                break
    return candidates


def _place(source: Path, keys: Sequence[bytes], secret: bytes, packed: bool) -> tuple[Path, str] | None:
    """(the last folder or archive of the way, itself below the source) where all of it is still there."""
    if source.name.upper() == "DICOMDIR":
        source = source.parent
    path, own = source, folder_key(secret, str(source))
    if own not in keys:
        return None
    start = keys.index(own) + 1
    for number, key in enumerate(keys[start:], start + 1):
        end = "\0" if packed and number == len(keys) else ""
        names = [path] if path.is_file() else _inside(path)
        below = next((child for child in names if folder_key(secret, f"{child}{end}") == key), None)
        if below is None:
            return None
        path = below
    return path, str(source)


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _file(path: Path, source: str, key: bytes, secret: bytes, packed: bool) -> Candidate | None:
    """The file of this key in a folder or archive, or the file itself that was named as a source."""
    if packed:
        candidates = _members(path, secret)
    else:
        listing = next(iter(listings([path], within=[Path(source)])), None)
        candidates = listing.candidates() if listing else iter(())
    return next((one for one in candidates if not one.broken and place_key(secret, one) == key), None)


def _members(path: Path, secret: bytes) -> Iterator[Candidate]:
    """What lies in an archive, listed in a decoding process: a hostile archive's directory has its own size."""
    try:
        status = path.stat()
    except OSError:
        return iter(())
    archive = Candidate.of(path, "", status.st_size, status.st_mtime_ns)
    worker = Worker(Settings(read=ReadSettings(max_members=MOST_MEMBERS)), secret)
    try:
        return member_candidates(archive, worker.members(archive)["members"])
    finally:
        worker.close()
