"""The DICOMweb pull against a small PACS of our own: slow, refusing, half-broken, growing."""

from __future__ import annotations

import contextlib
import gzip
import json
import resource
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from usfmae.client.intake.dicomweb import pull
from usfmae.client.intake.spool import Incoming, Spool
from usfmae.core.config.sources import DicomwebSettings
from usfmae.core.errors import ConfigError, NetworkError, ResourceError

SECRET = b"s" * 32


def _tag(tag: str, value: object) -> dict[str, object]:
    return {tag: {"vr": "UI", "Value": [value]}}


class Pacs(ThreadingHTTPServer):
    """Studies as {study: (day, [sop, ...])}; every instance is the same small file with another UID inside."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.content, self.studies = content, {"1.2.3.1": ("20260101", ["1.2.3.1.1", "1.2.3.1.2"])}
        self.requests: list[str] = []
        self.status, self.delay = 200, 0.0
        self.broken: set[str] = set()
        self.ignores_offset = False
        self.cap, self.warns = 1000, False  # results of one page; whether it says that there are more
        self.accepts, self.accepted = "", set[str]()  # a form that alone is answered; what was asked for
        self.location = ""
        self.instance_body: bytes | None = None
        self.packed, self.results = "", b""  # Content-Encoding of every answer; a search's body in place of ours

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/dicom-web"


class _Answer(BaseHTTPRequestHandler):
    server: Pacs

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = parts.path.removeprefix("/dicom-web/").split("/")
        self.server.requests.append(self.path)
        self.server.accepted.add(self.headers["Accept"])
        self.more = False
        time.sleep(self.server.delay)
        if self.server.location:
            self.send_response(302)
            self.send_header("Location", self.server.location)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if self.server.accepts and self.server.accepts not in self.headers["Accept"]:
            return self._send(406, b"", "text/plain")
        if self.server.status != 200:
            return self._send(self.server.status, b"", "text/plain")
        if path[1:2] and path[1] in self.server.broken:
            return self._send(500, b"", "text/plain")
        if len(path) == 6:
            return self._instance(path[5])
        if self.server.results:
            return self._send(200, self.server.results, "application/dicom+json")
        results = self._search(path, parse_qs(parts.query))
        return self._send(200, json.dumps(results).encode(), "application/dicom+json")

    def _search(self, path: list[str], query: dict[str, list[str]]) -> list[dict[str, object]]:
        studies = self.server.studies
        if len(path) == 1:
            first = query.get("StudyDate", ["0-"])[0].rstrip("-")
            every = [
                _tag("0020000D", s) | _tag("00080020", day) | _tag("00201208", len(sops))
                for s, (day, sops) in sorted(studies.items())
                if day >= first
            ]
            return self._page(every, query)
        if len(path) == 3:
            return [_tag("0020000E", path[1] + ".9")]
        return self._page([_tag("00080018", sop) for sop in studies[path[1]][1]], query)

    def _page(self, every: list[dict[str, object]], query: dict[str, list[str]]) -> list[dict[str, object]]:
        offset, limit = int(query["offset"][0]), int(query["limit"][0])
        offset = 0 if self.server.ignores_offset else offset
        end = offset + min(limit, self.server.cap)
        self.more = self.server.warns and end < len(every)
        return every[offset:end]

    def _instance(self, sop: str) -> None:
        if sop in self.server.broken:
            return self._send(404, b"", "text/plain")
        body = self.server.content.replace(b"9.9.9.9.9", sop.encode())
        if self.server.instance_body is not None:
            body = self.server.instance_body
        part = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + body + b"\r\n--b--"
        return self._send(200, part, 'multipart/related; type="application/dicom"; boundary=b')

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.server.packed:
            self.send_header("Content-Encoding", self.server.packed)
        if status == 200 and self.more:
            self.send_header("Warning", '299 pacs "There are 1 additional results that can be requested"')
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    import io

    from pydicom.dataset import Dataset, FileMetaDataset

    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = "1.2.840.10008.5.1.4.1.1.6.1", "9.9.9.9.9", "US"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = "9.9.9.9.9"
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    server = Pacs(out.getvalue())
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", SECRET)


def settings(pacs: Pacs, **changes: object) -> DicomwebSettings:
    return DicomwebSettings.model_validate({"url": pacs.url, "per_second": 1000, "timeout": 5, **changes})


def test_a_second_pull_asks_only_for_what_is_new(pacs: Pacs, spool: Spool, tmp_path: Path) -> None:
    assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 2
    pacs.requests.clear()
    assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 0
    assert all("/studies?" in request and "StudyDate=20251225-" in request for request in pacs.requests)
    pacs.studies["1.2.3.1"][1].append("1.2.3.1.3")  # an instance that arrived late
    pacs.studies["1.2.3.2"] = ("20260110", ["1.2.3.2.1"])
    assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 2
    assert len(spool.files()) == 4


def test_studies_beyond_one_page_are_all_pulled(
    pacs: Pacs, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usfmae.client.intake.pacs.PAGE", 3)
    pacs.studies = {f"1.2.4.{i}": ("20260101", [f"1.2.4.{i}.1"]) for i in range(1, 8)}
    assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 7


def test_one_instance_the_pacs_cannot_give_is_asked_for_again(pacs: Pacs, spool: Spool, tmp_path: Path) -> None:
    pacs.broken = {"1.2.3.1.1"}
    done = pull(settings(pacs), spool, tmp_path / "pull.db")
    assert (done.instances, done.failed) == (1, 1)
    pacs.broken = set()
    assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 1


def test_a_slow_pacs_is_one_clear_error_and_loses_nothing(
    pacs: Pacs, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usfmae.client.intake.pacs.ATTEMPTS", 1)
    pacs.delay = 1.0
    with pytest.raises(NetworkError, match=r"no answer within 0\.2 s"):
        pull(settings(pacs, timeout=0.2), spool, tmp_path / "pull.db")
    pacs.delay = 0
    assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 2


def test_a_pacs_that_ignores_offset_does_not_hold_us_for_ever(
    pacs: Pacs, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usfmae.client.intake.pacs.PAGE", 2)
    pacs.ignores_offset = True
    assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 2


@pytest.mark.parametrize(("status", "words"), [(401, "refuses our account"), (404, "answers 404")])
def test_a_refusal_says_what_to_check(pacs: Pacs, spool: Spool, tmp_path: Path, status: int, words: str) -> None:
    pacs.status = status
    with pytest.raises(NetworkError, match=words):
        pull(settings(pacs), spool, tmp_path / "pull.db")


def test_a_pacs_that_is_not_there(spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usfmae.client.intake.pacs.ATTEMPTS", 1)
    with pytest.raises(NetworkError, match="cannot be reached"):
        pull(DicomwebSettings(url="http://127.0.0.1:9/dicom-web"), spool, tmp_path / "pull.db")


def test_the_disk_floor_stops_the_pull(pacs: Pacs, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="the floor is"):
        pull(settings(pacs), Spool(tmp_path / "s", SECRET, floor_bytes=1 << 60), tmp_path / "pull.db")


def test_requests_are_paced(pacs: Pacs, spool: Spool, tmp_path: Path) -> None:
    start = time.monotonic()
    pull(settings(pacs, per_second=20), spool, tmp_path / "pull.db")  # 1 + 1 + 2 searches, 2 instances
    assert time.monotonic() - start >= (len(pacs.requests) - 1) / 20


def test_a_missing_password_file_is_named(pacs: Pacs, spool: Spool, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-such-file"):
        pull(settings(pacs, user="u", password_file="/no-such-file"), spool, tmp_path / "pull.db")


def test_what_is_remembered_holds_no_uid(pacs: Pacs, spool: Spool, tmp_path: Path) -> None:
    pull(settings(pacs), spool, tmp_path / "pull.db")
    stored = b"".join(f.read_bytes() for f in tmp_path.glob("pull.db*"))
    assert b"1.2.3.1" not in stored


@pytest.mark.parametrize("cap", [1, 3, 60])
@pytest.mark.parametrize("warns", [False, True])
def test_pages_of_any_size_are_asked_for_to_the_end(
    pacs: Pacs, spool: Spool, tmp_path: Path, cap: int, warns: bool
) -> None:
    pacs.cap, pacs.warns = cap, warns
    pacs.studies = {f"1.2.4.{i}": ("20260101", [f"1.2.4.{i}.{n}" for n in range(1, 4)]) for i in range(1, 9)}
    assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 24


def test_a_pacs_that_says_more_and_gives_no_more_is_asked_again(pacs: Pacs, spool: Spool, tmp_path: Path) -> None:
    pacs.cap, pacs.warns, pacs.ignores_offset = 1, True, True
    assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 1
    pacs.cap, pacs.ignores_offset = 1000, False
    assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 1, "taken for all there is"


@pytest.mark.parametrize("form", ["application/json", 'type="application/dicom"'])
def test_what_cannot_be_accepted_is_asked_for_more_plainly(
    pacs: Pacs, spool: Spool, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = _Answer.do_GET

    def picky(self: _Answer) -> None:
        is_instance = len(self.path.split("?")[0].split("/")) == 8
        wants = self.headers["Accept"]
        refused = "transfer-syntax" in wants if is_instance else "dicom+json" in wants
        if refused and (is_instance == ("dicom" in form)):
            return self._send(406, b"", "text/plain")
        return original(self)

    _Answer.more = False  # type: ignore[attr-defined]
    monkeypatch.setattr(_Answer, "do_GET", picky)
    assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 2


def test_redirects_are_named_and_not_followed(pacs: Pacs, spool: Spool, tmp_path: Path) -> None:
    pacs.location = "http://169.254.169.254/latest"
    with pytest.raises(NetworkError, match=r"redirects to http://169\.254\.169\.254/latest, which is not followed"):
        pull(settings(pacs), spool, tmp_path / "pull.db")
    assert len(pacs.requests) == 1


def test_an_instance_is_stored_as_it_comes_and_never_opened(pacs: Pacs, spool: Spool, tmp_path: Path) -> None:
    """A deflated instance that would take gigabytes is some bytes for the decoding process."""
    pacs.instance_body = bytes(128) + b"DICM\r\n--c\r\n\r\n--" * 10_000
    assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 1
    assert [f.read_bytes() for f in spool.files()] == [pacs.instance_body]


def gigabytes(layers: int) -> bytes:
    """Blanks, packed several times; one layer of 1 GiB is a megabyte."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = b"".join(packer.compress(bytes(1 << 24)) for _ in range(64)) + packer.flush()
    for _ in range(layers - 1):
        body = gzip.compress(body)
    return body


@pytest.mark.parametrize(
    ("packed", "results"),
    [
        ("gzip", gigabytes(1)),
        ("gzip, gzip", gigabytes(2)),
        ("br", b"[]"),
        ("gzip", b"no gzip"),
        ("gzip", gzip.compress(b"[]")[:-9]),
        ("", b"[" + b"{}," * (4 << 20) + b"{}]"),
    ],
    ids=["1 GiB", "packed twice", "another way", "none", "cut off", "millions of values"],
)
def test_results_that_take_more_memory_than_bytes_end_the_pull(
    pacs: Pacs, spool: Spool, tmp_path: Path, packed: str, results: bytes
) -> None:
    pacs.packed, pacs.results = packed, results
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NetworkError, match="a page of results"):
        pull(settings(pacs), spool, tmp_path / "pull.db")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_a_pacs_that_packs_its_answers_unasked_is_read(pacs: Pacs, spool: Spool, tmp_path: Path) -> None:
    send = _Answer._send
    pacs.packed = "gzip"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Answer, "_send", lambda self, status, body, kind: send(self, status, gzip.compress(body), kind))
        assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 2
    assert all(file.read_bytes()[128:132] == b"DICM" for file in spool.files())


def test_an_answer_that_drips_ends(pacs: Pacs, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(self: _Answer, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(1000):
                self.wfile.write(b" ")
                time.sleep(0.02)

    monkeypatch.setattr(_Answer, "_send", drip)
    with pytest.raises(NetworkError, match="slower"):
        pull(settings(pacs, timeout=0.5), spool, tmp_path / "pull.db")


def test_one_study_that_the_pacs_cannot_list_keeps_no_other_away(
    pacs: Pacs, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usfmae.client.intake.pacs.ATTEMPTS", 1)
    pacs.studies = {f"1.2.4.{i}": (f"2026010{i}", [f"1.2.4.{i}.1"]) for i in range(1, 4)}
    pacs.broken.add("1.2.4.1")
    done = pull(settings(pacs), spool, tmp_path / "pull.db")
    assert (done.instances, done.failed) == (2, 1)
    pacs.broken.clear()
    assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 1, "it is asked for again"


@pytest.mark.parametrize("content", [b"", b"<html>log in</html>", bytes(200)])
@pytest.mark.parametrize("kind", ["application/dicom", "multipart"])
def test_what_is_no_dicom_file_is_asked_for_again(
    pacs: Pacs, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, kind: str
) -> None:
    """Else an empty answer would stand for the instance for ever."""
    pacs.instance_body = content
    with monkeypatch.context() as patch:
        if kind == "application/dicom":
            patch.setattr(_Answer, "_instance", lambda self, sop: self._send(200, content, kind))
        done = pull(settings(pacs), spool, tmp_path / "pull.db")
    assert (done.instances, done.failed, spool.files()) == (0, 2, [])
    pacs.instance_body = None
    assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 2


def test_an_answer_that_is_cut_off_is_no_instance(pacs: Pacs, spool: Spool, tmp_path: Path) -> None:
    pacs.instance_body = bytes(128) + b"DICM\r\n--b--\r\n"  # complete, and more behind it: read to the end of the part
    assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 1

    def cut(self: _Answer, status: int, body: bytes, kind: str, send: object = _Answer._send) -> None:
        send(self, status, body[: -len(b"\r\n--b--")] if "multipart" in kind else body, kind)  # type: ignore[operator]

    pacs.studies, pacs.instance_body = {"1.2.5": ("20260102", ["1.2.5.1"])}, None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Answer, "_send", cut)
        done = pull(settings(pacs), spool, tmp_path / "pull.db")
    assert (done.instances, done.failed) == (0, 1) and list(spool.partial.iterdir()) == []


def test_an_instance_beyond_the_limit_is_not_asked_for_again(pacs: Pacs, spool: Spool, tmp_path: Path) -> None:
    spool.largest_bytes = 100
    assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 0
    pacs.requests.clear()
    pacs.studies["1.2.3.1"][1].append("1.2.3.1.3")
    pull(settings(pacs), spool, tmp_path / "pull.db")
    assert [r for r in pacs.requests if r.endswith("/1.2.3.1.1")] == []
    spool.largest_bytes = 10_000
    pacs.studies["1.2.3.1"][1].append("1.2.3.1.4")
    assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 4


def test_one_pull_opens_so_many_studies_and_the_next_goes_on(pacs: Pacs, spool: Spool, tmp_path: Path) -> None:
    pacs.studies = {f"1.2.4.{i}": (f"2026010{i}", [f"1.2.4.{i}.1"]) for i in range(1, 8)}
    for expected in (3, 3, 1, 0):
        done = pull(settings(pacs, max_studies=3), spool, tmp_path / "pull.db")
        assert (done.instances, done.more) == (expected, expected == 3)


def test_a_password_in_the_address_is_never_shown(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usfmae.client.intake.pacs.ATTEMPTS", 1)
    with pytest.raises(NetworkError) as raised:
        pull(DicomwebSettings(url="http://site:s3cret@127.0.0.1:9/dicom-web"), spool, tmp_path / "pull.db")
    assert "s3cret" not in str(raised.value) and "127.0.0.1:9" in str(raised.value)


@pytest.mark.parametrize(
    "page", [b"{}", b"[[]]", b'[{"0020000D": 7}]', b"[" * 100_000, b"\xff", b'[{"0020000D": {"Value": ["../.."]}}]']
)
def test_results_that_are_none_end_the_pull_with_a_sentence_or_are_passed_over(
    pacs: Pacs, spool: Spool, tmp_path: Path, page: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Answer, "_search", lambda self, path, query: None)
    monkeypatch.setattr("json.dumps", lambda value: page.decode("latin-1"))
    is_list = page.startswith(b"[") and page.endswith(b"]")
    ends = contextlib.nullcontext() if is_list else pytest.raises(NetworkError, match="a page of results")
    with ends:
        assert pull(settings(pacs), spool, tmp_path / "pull.db").instances == 0


def test_an_unforeseen_error_costs_one_instance(
    pacs: Pacs, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter([1, 0])
    original = Incoming.keep
    monkeypatch.setattr(Incoming, "keep", lambda self: 1 / 0 if next(calls, 0) else original(self))
    done = pull(settings(pacs), spool, tmp_path / "pull.db")
    assert (done.instances, done.failed) == (1, 1)
