"""A DICOMweb pull: ask the PACS what is new (QIDO-RS), fetch it (WADO-RS), keep it in the spool (DICOM PS3.18).

Incremental: studies from a little before the newest one already pulled; a study whose instance count has not changed
is not opened again, an instance that was fetched is never fetched again. What was fetched is remembered as HMACs, in
the site's directory, so an interrupted pull goes on where it was.
"""

from __future__ import annotations

import io
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from requests.adapters import HTTPAdapter

from usfmae.client.intake.spool import Spool
from usfmae.core import log
from usfmae.core.config.sources import DicomwebSettings
from usfmae.core.errors import ConfigError, NetworkError
from usfmae.core.types import secret_id

logger = logging.getLogger(__name__)

STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
STUDY_DATE, STUDY_INSTANCES = "00080020", "00201208"
PAGE = 200  # results asked for at once; an archive may cap lower
WHOLE = 50  # an answer shorter than this is taken for all there is: caps lie at 100 and above
ATTEMPTS = 3


@dataclass
class Pulled:
    """What one pull did."""

    studies: int = 0
    instances: int = 0
    repeated: int = 0  # the same bytes lay in the spool already
    failed: int = 0  # asked for again at the next pull
    bytes: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Paced(HTTPAdapter):
    """At most so many requests a second, whoever makes them."""

    def __init__(self, per_second: float) -> None:
        super().__init__(max_retries=0)
        self.gap, self.next = 1.0 / per_second, 0.0

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        wait = self.next - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        self.next = max(self.next, time.monotonic()) + self.gap
        return super().send(*args, **kwargs)


class _Memory:
    """What was pulled before: HMACs of instances, instance counts of studies, the newest study date."""

    def __init__(self, file: Path, secret: bytes) -> None:
        self.secret = secret
        self.db = sqlite3.connect(file, isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("CREATE TABLE IF NOT EXISTS instance (id TEXT PRIMARY KEY) WITHOUT ROWID")
        self.db.execute("CREATE TABLE IF NOT EXISTS study (id TEXT PRIMARY KEY, instances INTEGER) WITHOUT ROWID")
        self.db.execute("CREATE TABLE IF NOT EXISTS newest (only INTEGER PRIMARY KEY CHECK (only = 1), day TEXT)")

    def has(self, uid: str) -> bool:
        found = self.db.execute("SELECT 1 FROM instance WHERE id = ?", (secret_id(self.secret, uid),))
        return found.fetchone() is not None

    def add(self, uid: str) -> None:
        self.db.execute("INSERT OR IGNORE INTO instance VALUES (?)", (secret_id(self.secret, uid),))

    def unchanged(self, study: str, instances: int) -> bool:
        row = self.db.execute("SELECT instances FROM study WHERE id = ?", (secret_id(self.secret, study),)).fetchone()
        return row is not None and instances > 0 and row[0] == instances

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
    client, memory, done = _client(settings), _Memory(memory_file, spool.secret), Pulled()
    under_way = _Pull(client, settings.modality, memory, spool, done)
    started = time.monotonic()
    today = datetime.now(UTC).strftime("%Y%m%d")
    newest = memory.newest
    try:
        for study in _studies(client, settings, newest):
            under_way.study(study)
            day = _value(study, STUDY_DATE)
            newest = max(newest, min(day, today)) if day.isdigit() else newest
        memory.newest = newest
    except requests.RequestException as error:
        raise _explained(error, settings, done) from None
    finally:
        memory.db.close()
        done.seconds = round(time.monotonic() - started, 3)
        log.note(logger, "DICOMweb pull", **done.as_dict())
    return done


def _client(settings: DicomwebSettings) -> DICOMwebClient:
    for name in ("dicomweb_client", "retrying"):  # their lines hold UIDs
        logging.getLogger(name).setLevel(logging.CRITICAL)
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Paced(settings.per_second))
    if settings.ca_file:
        session.verify = str(settings.ca_file)
    if settings.token_file:
        session.headers["Authorization"] = f"Bearer {_secret(settings.token_file)}"
    elif settings.user:
        session.auth = (settings.user, _secret(settings.password_file) if settings.password_file else "")
    client = DICOMwebClient(settings.url, session=session, timeout=settings.timeout)
    client.set_http_retry_params(retry=True, max_attempts=ATTEMPTS, wait_exponential_multiplier=500)
    return client


def _secret(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError as error:
        raise ConfigError(f"secret {file}", error.strerror or str(error), "give a file this account may read") from None


def _value(found: dict[str, Any], tag: str) -> str:
    """The first value of a tag in DICOM JSON, as text; empty where there is none."""
    values = found.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _first_day(settings: DicomwebSettings, newest: str) -> str:
    if not newest:
        return settings.since
    day = date(int(newest[:4]), int(newest[4:6]), int(newest[6:8])) - timedelta(days=settings.lookback_days)
    return max(settings.since, day.strftime("%Y%m%d"))


def _studies(client: DICOMwebClient, settings: DicomwebSettings, newest: str) -> Iterator[dict[str, Any]]:
    filters = {"ModalitiesInStudy": settings.modality}
    first = _first_day(settings, newest)
    if first:
        filters["StudyDate"] = f"{first}-"
    yield from _all(client.search_for_studies, STUDY, search_filters=filters, fields=[STUDY_DATE, STUDY_INSTANCES])


def _all(search: Callable[..., list[dict[str, Any]]], tag: str, *where: str, **query: Any) -> Iterator[dict[str, Any]]:
    """Every result, page by page; ends where a page brings nothing new, as with a PACS that ignores `offset`."""
    seen: set[str] = set()
    offset = 0
    while True:
        page = search(*where, limit=PAGE, offset=offset, **query)
        fresh = [found for found in page if _value(found, tag) not in seen]
        seen.update(_value(found, tag) for found in fresh)
        yield from fresh
        if len(page) < min(PAGE, WHOLE) or not fresh:
            return
        offset += len(page)


@dataclass
class _Pull:
    """One pull under way."""

    client: DICOMwebClient
    modality: str
    memory: _Memory
    spool: Spool
    done: Pulled

    def study(self, found: dict[str, Any]) -> None:
        study, text = _value(found, STUDY), _value(found, STUDY_INSTANCES)
        instances = int(text) if text.isdigit() else 0
        if self.memory.unchanged(study, instances):
            return
        self.done.studies += 1
        failed = self.done.failed
        filters = {"Modality": self.modality}
        for found_series in _all(self.client.search_for_series, SERIES, study, search_filters=filters):
            series = _value(found_series, SERIES)
            for instance in _all(self.client.search_for_instances, INSTANCE, study, series):
                uid = _value(instance, INSTANCE)
                if not self.memory.has(uid):
                    self.fetch(study, series, uid)
        if self.done.failed == failed:
            self.memory.done(study, instances)

    def fetch(self, study: str, series: str, uid: str) -> None:
        """One instance into the spool, in the transfer syntax the PACS holds it in."""
        self.spool.check_room()
        content = io.BytesIO()
        try:
            instance = self.client.retrieve_instance(study, series, uid, media_types=(("application/dicom", "*"),))
            instance.save_as(content, enforce_file_format=True)
        except Exception as error:  # one instance the PACS cannot give, or gives damaged, must not end the pull
            if isinstance(error, requests.ConnectionError | requests.Timeout) or _refused(error):
                raise
            self.done.failed += 1
            log.note(logger, "instance not fetched", logging.WARNING, error=type(error).__name__)
            return
        self.done.bytes += content.tell()
        kept = self.spool.add(content.getvalue())
        self.done.instances += kept
        self.done.repeated += not kept
        self.memory.add(uid)


def _refused(error: Exception) -> bool:
    """Whether the PACS refuses us altogether: to ask on for every instance would lock an account."""
    response = getattr(error, "response", None)
    return response is not None and response.status_code in (401, 403)


def _explained(error: requests.RequestException, settings: DicomwebSettings, done: Pulled) -> NetworkError:
    where = f"PACS {settings.url}"
    kept = f"{done.instances} instances are safe; the next pull goes on from here"
    if isinstance(error, requests.exceptions.SSLError):
        return NetworkError(where, "its certificate is not trusted", "set dicomweb.ca_file")
    if isinstance(error, requests.Timeout):
        return NetworkError(where, f"no answer within {settings.timeout:g} s", kept)
    if _refused(error):
        return NetworkError(where, "it refuses our account (401/403)", "check dicomweb.user and its password file")
    if error.response is not None:
        return NetworkError(where, f"it answers {error.response.status_code}", "check dicomweb.url")
    return NetworkError(where, "cannot be reached", kept)
