"""The PACS as a DICOMweb server: searches to their last page, instances as bytes (DICOM PS3.18 sections 8, 10.4, 10.6).

Every answer has a bound, redirects are not followed, and nothing that comes is opened as DICOM.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from usfmae.client.intake.multipart import Parts, boundary_of
from usfmae.core import log
from usfmae.core.config.sources import DicomwebSettings
from usfmae.core.errors import ConfigError, NetworkError

logger = logging.getLogger(__name__)

STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
PAGE = 200  # results asked for at once; an archive may cap lower
MOST_RESULTS = 1_000_000  # of one search
MOST_JSON = 64 << 20  # bytes of one page of results
MOST_VALUES = 4_000_000  # of one page: many empty ones take far more memory than their bytes
PIECE = 1 << 20  # bytes unpacked at once
SLOWEST = 1000  # bytes a second, once `timeout` has passed: else one answer could hold a pull for ever
ATTEMPTS = 3
AGAIN = {408, 429, 500, 502, 503, 504}  # answers that may be another one in a moment
_UID = re.compile(r"[0-9.]{1,64}")
# What is asked for, and the plainer question where the PACS cannot give that (406).
JSON = ("application/dicom+json", "application/json, */*")
DICOM = (
    'multipart/related; type="application/dicom"; transfer-syntax=*',
    'multipart/related; type="application/dicom"',
)


@dataclass(frozen=True)
class Query:
    """A search: where, the tag that tells results apart, what to match, further fields, how many there should be."""

    path: str
    tag: str
    filters: dict[str, str] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    expected: int = 0  # 0: unknown


def value_of(dataset: dict[str, Any], tag: str) -> str:
    """The first value of a tag in DICOM JSON, as text; empty where there is none."""
    element = dataset.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    first = values[0] if isinstance(values, list) and values else ""
    return str(first) if isinstance(first, str | int) else ""


class Pacs:
    """Paced requests. Raises httpx errors; `explained` makes one of them an error for people."""

    def __init__(self, settings: DicomwebSettings) -> None:
        self.settings = settings
        self.url = settings.url.rstrip("/")
        self.gap, self.next = 1.0 / settings.per_second, 0.0
        self.plain: set[tuple[str, ...]] = set()  # questions that the PACS answers in their plainer form alone
        self.incomplete = False  # a search said that there is more, and did not give it
        headers, auth = {"Accept-Encoding": "identity"}, None
        if settings.token_file:
            headers["Authorization"] = f"Bearer {_secret(settings.token_file)}"
        elif settings.user:
            auth = (settings.user, _secret(settings.password_file) if settings.password_file else "")
        self.http = httpx.Client(
            verify=_verified(settings), headers=headers, auth=auth, timeout=settings.timeout, follow_redirects=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.http.close()

    def all(self, query: Query) -> Iterator[dict[str, Any]]:
        """Every result, page after page, whatever size the PACS gives them (PS3.18 section 8.3.4).

        Ends at an empty page, at the expected count, or where a page brings nothing new, as with a PACS that ignores
        `offset`; then `incomplete` is set where it said itself that there is more.
        """
        seen: set[str] = set()
        offset = 0
        while len(seen) < MOST_RESULTS:
            page, more = self._page(query, offset)
            fresh = {value_of(dataset, query.tag): dataset for dataset in page if isinstance(dataset, dict)}
            fresh = {uid: dataset for uid, dataset in fresh.items() if _UID.fullmatch(uid) and uid not in seen}
            seen.update(fresh)
            yield from fresh.values()
            offset += len(page)
            if not fresh or (len(seen) == query.expected and not more):
                self.incomplete |= more
                return
        self.incomplete = True

    def _page(self, query: Query, offset: int) -> tuple[list[Any], bool]:
        """Results, and whether the PACS says that there are more (`Warning: 299`)."""
        parameters = [*query.filters.items(), ("limit", str(PAGE)), ("offset", str(offset))]
        parameters += [("includefield", tag) for tag in query.fields]
        with self._answer(query.path, JSON, parameters) as answer:
            try:
                page = self._json(answer)
            except (ValueError, RecursionError) as error:
                raise self._odd(f"a page of results that is no JSON ({error!s:.60})") from None
            warnings = answer.headers.get_list("warning")
        if not isinstance(page, list):
            raise self._odd("a page of results that is no list")
        return page, any(w.strip().startswith("299") and "additional" in w.lower() for w in warnings)

    def _json(self, answer: httpx.Response) -> Any:
        """The answer's JSON. ValueError, RecursionError where it is none; NetworkError where it is beyond all bounds."""
        content = bytearray()
        for piece in self._pieces(answer):
            content += piece
            if len(content) > MOST_JSON:
                raise self._odd(f"a page of results of more than {MOST_JSON >> 20} MiB")
        if sum(content.count(sign) for sign in (b"{", b"[", b",")) > MOST_VALUES:
            raise self._odd(f"a page of results of more than {MOST_VALUES:,d} values")
        return json.loads(content) if content else []

    def _pieces(self, answer: httpx.Response) -> Iterator[bytes]:
        """The body in small pieces. ValueError where it comes packed in another way than gzip, damaged, or dripping.

        It was asked for as it is. Packed once it is taken too; packed several times, kilobytes unpack to gigabytes.
        """
        packed = [one.strip().lower() for one in answer.headers.get("content-encoding", "identity").split(",")]
        if packed not in (["identity"], ["gzip"], [""]):
            raise ValueError(f"a body packed as {', '.join(packed)!r:.40}")
        unpack = zlib.decompressobj(31) if packed == ["gzip"] else None
        began, received = time.monotonic(), 0
        for raw in answer.iter_raw():
            received += len(raw)
            if received < SLOWEST * (time.monotonic() - began - self.settings.timeout):
                raise ValueError(f"a body that comes slower than {SLOWEST} bytes a second")
            if unpack is None:
                yield raw
                continue
            try:
                while raw:
                    yield unpack.decompress(raw, PIECE)
                    raw = unpack.unconsumed_tail
            except zlib.error as error:
                raise ValueError(f"damaged gzip: {error}") from None
        if unpack is not None and received and not unpack.eof:
            raise ValueError("gzip that is cut off")

    def retrieve(self, path: str, write: Callable[[bytes], None]) -> None:
        """The bytes of one instance, as they come. ValueError where the answer holds none, or half of one."""
        with self._answer(path, DICOM) as answer:
            kind = answer.headers.get("content-type", "")
            if kind.lower().startswith("application/dicom") and "json" not in kind and "xml" not in kind:
                for piece in self._pieces(answer):
                    write(piece)
                return
            parts = Parts(boundary_of(kind), write)
            for piece in self._pieces(answer):
                parts.feed(piece)
            parts.end()
            if parts.parts > 1:
                raise ValueError(f"{parts.parts} instances where one was asked for")

    @contextlib.contextmanager
    def _answer(
        self, path: str, forms: tuple[str, ...], parameters: Sequence[tuple[str, str]] = ()
    ) -> Iterator[httpx.Response]:
        """An answer of success, open to be read; 204 (no results) has no content."""
        for attempt in range(1, ATTEMPTS + 1):
            accept = forms[-1] if forms in self.plain else forms[0]
            self._wait_for_turn()
            request = self.http.build_request(
                "GET", f"{self.url}/{path}", params=httpx.QueryParams(list(parameters)), headers={"Accept": accept}
            )
            try:
                answer = self.http.send(request, stream=True)
            except httpx.TransportError:
                if attempt == ATTEMPTS:
                    raise
                time.sleep(0.5 * attempt)
                continue
            with contextlib.closing(answer):
                if answer.status_code == 406 and forms not in self.plain:
                    self.plain.add(forms)
                    log.note(logger, "the PACS gets a plainer question", why="406 (not acceptable)", asked=accept)
                    if attempt < ATTEMPTS:
                        continue
                if answer.status_code in AGAIN and attempt < ATTEMPTS:
                    time.sleep(0.5 * attempt)
                    continue
                self._check(answer)
                yield answer
                return

    def _check(self, answer: httpx.Response) -> None:
        if answer.is_redirect or 300 <= answer.status_code < 400:
            target = log.without_password(answer.headers.get("location", "nowhere"))[:200]
            raise NetworkError(
                f"PACS {log.without_password(self.url)}",
                f"it redirects to {target}, which is not followed",
                "give the address that answers itself as dicomweb.url, if it is yours",
            )
        answer.raise_for_status()

    def _wait_for_turn(self) -> None:
        wait = self.next - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        self.next = max(self.next, time.monotonic()) + self.gap

    def _odd(self, what: str) -> NetworkError:
        return NetworkError(f"PACS {log.without_password(self.url)}", f"it answers with {what}", "check dicomweb.url")

    def explained(self, error: httpx.HTTPError, safe: str) -> NetworkError:
        where = f"PACS {log.without_password(self.url)}"
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return NetworkError(where, "its certificate is not trusted", "set dicomweb.ca_file")
        if isinstance(error, httpx.TimeoutException):
            return NetworkError(where, f"no answer within {self.settings.timeout:g} s", safe)
        if refuses_us(error):
            return NetworkError(where, "it refuses our account (401/403)", "check dicomweb.user and its password file")
        if isinstance(error, httpx.ProxyError):
            return NetworkError(where, "the proxy does not connect to it", "name the PACS in NO_PROXY")
        if isinstance(error, httpx.HTTPStatusError):
            return NetworkError(where, f"it answers {error.response.status_code}", "check dicomweb.url")
        return NetworkError(where, "cannot be reached", safe)


def refuses_us(error: Exception) -> bool:
    """Whether the PACS refuses us altogether: to ask on for every instance would lock an account."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (401, 403)


def _verified(settings: DicomwebSettings) -> Any:
    """The certificates that are trusted. ConfigError where the file of the settings holds none."""
    if not settings.ca_file:
        return True
    import ssl

    try:
        return ssl.create_default_context(cafile=str(settings.ca_file))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("dicomweb.ca_file", str(error), "give a PEM file this account may read") from None


def _secret(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"secret {file}", why, "give a text file this account may read") from None
