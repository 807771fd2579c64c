"""A DICOMweb pull: ask the PACS what is new (QIDO-RS), fetch it (WADO-RS), keep it in the spool (DICOM PS3.18).

Incremental: studies from a little before the newest one already pulled; a study whose instance count has not changed
is not opened again, an instance that was fetched is never fetched again. What was fetched is remembered as HMACs, in
the site's directory, so an interrupted pull continues where it was. Instances go from the network to the spool and are
not opened here: a hostile one costs the decoding process that reads it later, not the agent.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from usfmae.client.intake.pacs import INSTANCE, SERIES, STUDY, Pacs, Query, refuses_us, value_of
from usfmae.client.intake.spool import Spool, TooLargeError
from usfmae.core import log
from usfmae.core.config.sources import DicomwebSettings
from usfmae.core.errors import NetworkError, ResourceError
from usfmae.core.types import secret_id

logger = logging.getLogger(__name__)

LOST = httpx.ConnectError | httpx.TimeoutException | httpx.ProxyError  # the PACS itself is away
MAGIC_END = 132  # bytes of a DICOM file up to the end of "DICM" (PS3.10 section 7.1)
STUDY_DATE = "00080020"
SERIES_IN_STUDY, INSTANCES_IN_STUDY, INSTANCES_IN_SERIES = "00201206", "00201208", "00201209"


@dataclass
class Pulled:
    """What one pull did."""

    studies: int = 0
    instances: int = 0
    repeated: int = 0  # the same bytes lay in the spool already
    failed: int = 0  # instances, and studies that were not listed: asked for again at the next pull
    bytes: int = 0
    seconds: float = 0.0
    more: bool = False  # there was more than one pull takes; the next one goes on

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Memory:
    """What was pulled before: HMACs of instances, instance counts of studies, the newest study date."""

    def __init__(self, file: Path, secret: bytes) -> None:
        self.secret = secret
        self.db = sqlite3.connect(file, isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("CREATE TABLE IF NOT EXISTS instance (id TEXT PRIMARY KEY) WITHOUT ROWID")
        self.db.execute("CREATE TABLE IF NOT EXISTS study (id TEXT PRIMARY KEY, instances INTEGER) WITHOUT ROWID")
        self.db.execute("CREATE TABLE IF NOT EXISTS newest (only INTEGER PRIMARY KEY CHECK (only = 1), day TEXT)")

    def has(self, *names: str) -> bool:
        row = self.db.execute("SELECT 1 FROM instance WHERE id = ?", (secret_id(self.secret, *names),))
        return row.fetchone() is not None

    def add(self, *names: str) -> None:
        self.db.execute("INSERT OR IGNORE INTO instance VALUES (?)", (secret_id(self.secret, *names),))

    def unchanged(self, study: str, instances: int) -> bool:
        row = self.db.execute("SELECT instances FROM study WHERE id = ?", (secret_id(self.secret, study),)).fetchone()
        return row is not None and instances > 0 and bool(row[0] == instances)

    def done(self, study: str, instances: int) -> None:
        self.db.execute("INSERT OR REPLACE INTO study VALUES (?, ?)", (secret_id(self.secret, study), instances))

    @property
    def newest(self) -> str:
        row = self.db.execute("SELECT day FROM newest").fetchone()
        return str(row[0]) if row else ""

    @newest.setter
    def newest(self, day: str) -> None:
        self.db.execute("INSERT OR REPLACE INTO newest VALUES (1, ?)", (day,))


def pull(settings: DicomwebSettings, spool: Spool, memory_file: Path) -> Pulled:
    """Fetch what is new. NetworkError where the PACS fails, ResourceError at the disk floor; both lose nothing."""
    done = Pulled()
    started = time.monotonic()
    with Pacs(settings) as pacs:
        memory = _Memory(memory_file, spool.secret)
        try:
            _pull(_Fetching(pacs, settings, memory, spool, done))
        except httpx.HTTPError as error:
            raise pacs.explained(
                error, f"{done.instances} instances are safe; the next pull goes on from here"
            ) from None
        finally:
            memory.db.close()
            done.seconds = round(time.monotonic() - started, 3)
            log.note(logger, "DICOMweb pull", **done.as_dict())
    return done


def _pull(fetching: _Fetching) -> None:
    """Study after study, as many as one pull takes. The newest date moves on only where nothing was left over."""
    memory, done = fetching.memory, fetching.done
    today = datetime.now(UTC).strftime("%Y%m%d")
    newest = memory.newest
    for study in _studies(fetching.pacs, fetching.settings, newest):
        if done.studies >= fetching.settings.max_studies:
            done.more = True
            break
        fetching.study_or_nothing(study)
        day = value_of(study, STUDY_DATE)
        newest = max(newest, min(day, today)) if len(day) == 8 and day.isdigit() else newest
    if not (done.more or fetching.pacs.incomplete):
        memory.newest = newest


def _first_day(settings: DicomwebSettings, newest: str) -> str:
    if not newest:
        return settings.since
    try:
        day = date(int(newest[:4]), int(newest[4:6]), int(newest[6:8])) - timedelta(days=settings.lookback_days)
    except (ValueError, OverflowError):  # a study of the 99th of a month, or of the year 1
        return settings.since
    return max(settings.since, day.strftime("%Y%m%d"))


def _studies(pacs: Pacs, settings: DicomwebSettings, newest: str) -> Iterator[dict[str, Any]]:
    filters = {"ModalitiesInStudy": settings.modality}
    first = _first_day(settings, newest)
    if first:
        filters["StudyDate"] = f"{first}-"
    fields = (STUDY_DATE, SERIES_IN_STUDY, INSTANCES_IN_STUDY)
    yield from pacs.all(Query("studies", STUDY, filters, fields))


@dataclass
class _Fetching:
    """One pull under way."""

    pacs: Pacs
    settings: DicomwebSettings
    memory: _Memory
    spool: Spool
    done: Pulled

    def study_or_nothing(self, dataset: dict[str, Any]) -> None:
        """One study that the PACS cannot list must not keep those behind it away; it is asked for again."""
        try:
            self.study(dataset)
        except Exception as error:
            if isinstance(error, ResourceError | LOST) or refuses_us(error):
                raise
            self.pacs.incomplete = True
            self.done.failed += 1
            log.note(logger, "study not listed", logging.WARNING, error=type(error).__name__)

    def study(self, dataset: dict[str, Any]) -> None:
        study, instances = value_of(dataset, STUDY), _count(dataset, INSTANCES_IN_STUDY)
        if self.memory.unchanged(study, instances):
            return
        self.done.studies += 1
        failed = self.done.failed
        filters = {"Modality": self.settings.modality}
        query = Query(f"studies/{study}/series", SERIES, filters, (INSTANCES_IN_SERIES,))
        for series in self.pacs.all(query):
            self.series(f"studies/{study}/series/{value_of(series, SERIES)}", _count(series, INSTANCES_IN_SERIES))
        if self.done.failed == failed and not self.pacs.incomplete:
            self.memory.done(study, instances)

    def series(self, path: str, count: int) -> None:
        for instance in self.pacs.all(Query(f"{path}/instances", INSTANCE, expected=count)):
            uid = value_of(instance, INSTANCE)
            too_large = uid, f"larger than {self.spool.largest_bytes}"
            if not (self.memory.has(uid) or self.memory.has(*too_large)):
                try:
                    self.fetch(f"{path}/instances/{uid}", uid)
                except TooLargeError as error:
                    self.memory.add(*too_large)  # not asked for again while the limit stays
                    log.note(logger, "instance not fetched", logging.WARNING, why=error.why)

    def fetch(self, path: str, uid: str) -> None:
        """One instance into the spool, in the transfer syntax the PACS holds it in."""
        file = self.spool.incoming()
        head = bytearray()

        def write(content: bytes) -> None:
            head.extend(content[: MAGIC_END - len(head)])
            file.write(content)

        try:
            self.pacs.retrieve(path, write)
            if head[MAGIC_END - 4 :] != b"DICM":  # an empty answer, or a page that says to log in
                raise ValueError("not a DICOM file")
            size, is_new = file.size, file.keep()
            self.spool.settle()
        except Exception as error:  # one instance the PACS cannot give, or gives damaged, must not end the pull
            file.discard()
            if isinstance(error, ResourceError | NetworkError | LOST) or refuses_us(error):
                raise
            self.done.failed += 1
            log.note(logger, "instance not fetched", logging.WARNING, error=type(error).__name__)
            return
        self.done.bytes += size
        self.done.instances += is_new
        self.done.repeated += not is_new
        self.memory.add(uid)


def _count(dataset: dict[str, Any], tag: str) -> int:
    text = value_of(dataset, tag)
    return int(text) if text.isdecimal() and len(text) < 10 else 0
