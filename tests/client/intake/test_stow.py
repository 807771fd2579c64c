"""STOW-RS: what a gateway pushes is stored as it came, nothing else is, and the answer says which."""

from __future__ import annotations

import io
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, JPEGBaseline8Bit, UltrasoundImageStorage, generate_uid

from usfmae.client.intake import stow
from usfmae.client.intake.spool import Incoming, Spool
from usfmae.client.intake.stow import StowService
from usfmae.core.config.sources import StowSettings
from usfmae.core.errors import ConfigError, ResourceError

TOKEN = "t0ken"


def instance(size: int = 100, sop_class: str = UltrasoundImageStorage) -> bytes:
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.PatientName = sop_class, generate_uid(), "DOE^JANE"
    data.add_new(0x00420011, "OB", bytes(size))
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = sop_class, data.SOPInstanceUID
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def body(*instances: bytes) -> bytes:
    parts = (b"--b\r\nContent-Type: application/dicom\r\n\r\n" + one + b"\r\n" for one in instances)
    return b"".join(parts) + b"--b--\r\n"


@pytest.fixture
def service(tmp_path: Path) -> StowService:
    counts: Counter[str] = Counter()
    made = StowService(Spool(tmp_path / "spool", b"s" * 32), TOKEN, StowSettings(idle_seconds=2))
    made.count = lambda what: counts.update([what])
    made.counts = counts  # type: ignore[attr-defined]
    return made


@pytest.fixture
def port(service: StowService) -> Iterator[int]:
    with stow.serving(service) as number:
        yield number


def push(port: int, content: bytes, token: str = TOKEN, kind: str = "") -> httpx.Response:
    kind = kind or 'multipart/related; type="application/dicom"; boundary=b'
    headers = {"Content-Type": kind, "Authorization": f"Bearer {token}"}
    return httpx.post(f"http://127.0.0.1:{port}/studies", content=content, headers=headers, timeout=20)


def test_what_is_pushed_is_stored_as_it_came_and_again_is_one_file(port: int, service: StowService) -> None:
    sent = [instance(), instance(300_000)]
    answer = push(port, body(*sent))
    assert answer.status_code == 200 and len(answer.json()["00081199"]["Value"]) == 2
    assert answer.json()["00081199"]["Value"][0]["00081150"]["Value"] == [UltrasoundImageStorage]
    assert push(port, body(*sent)).status_code == 200
    assert sorted(f.read_bytes() for f in service.spool.files()) == sorted(sent)
    assert service.counts == {"stored": 2, "repeated": 2}  # type: ignore[attr-defined]


def test_what_is_no_ultrasound_or_no_dicom_is_refused_by_name(port: int, service: StowService) -> None:
    answer = push(port, body(instance(), instance(sop_class=CTImageStorage), b"%PDF" * 2000))
    reasons = [item["00081197"]["Value"] for item in answer.json()["00081198"]["Value"]]
    assert answer.status_code == 202 and reasons == [[0x0122], [0xC000]]
    assert push(port, body(instance(sop_class=CTImageStorage))).status_code == 409
    assert len(service.spool.files()) == 1


def test_an_empty_part_is_one_that_failed(port: int, service: StowService) -> None:
    answer = push(port, b"--b\r\nContent-Type: application/dicom\r\n\r\n\r\n" + body(instance()))
    assert answer.status_code == 202 and len(answer.json()["00081198"]["Value"]) == 1
    assert service.counts == {"stored": 1, "refused": 1}  # type: ignore[attr-defined]


def test_what_came_whole_before_a_push_broke_off_is_counted(port: int, service: StowService) -> None:
    assert push(port, body(instance(), instance())[:-9]).status_code == 400
    assert len(service.spool.files()) == 1 and service.counts == {"stored": 1}  # type: ignore[attr-defined]


def test_many_parts_cost_little(
    port: int, service: StowService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal each would fill the log, and what was kept of each the memory."""
    monkeypatch.setattr(stow, "MOST_PARTS", 300)
    junk = b"--b\r\n\r\n" + b"x" * 3000 + b"\r\n"
    answer = push(port, junk * 250 + b"--b--\r\n")
    assert answer.status_code == 409 and len(answer.json()["00081198"]["Value"]) == 250
    assert sum("instance refused" in one.message for one in caplog.records) == stow.MOST_LOGGED
    assert push(port, junk * 400 + b"--b--\r\n").status_code == 400


def test_classes_of_the_settings_are_taken(service: StowService) -> None:
    service.settings = StowSettings(sop_classes=(str(CTImageStorage),))
    with stow.serving(service) as port:
        assert push(port, body(instance(sop_class=CTImageStorage))).status_code == 200


@pytest.mark.parametrize("token", ["no", "t0kem", "t0ken2"])
def test_nobody_pushes_without_the_token(port: int, service: StowService, token: str) -> None:
    assert push(port, body(instance()), token).status_code == 401
    assert service.spool.files() == []


@pytest.mark.parametrize(
    "kind",
    [
        "application/dicom",
        "multipart/form-data; boundary=b",
        'multipart/related; type="application/dicom"',
        'multipart/related; type="application/dicom+json"; boundary=b',
    ],
)
def test_another_form_is_not_read(port: int, kind: str) -> None:
    assert push(port, body(instance()), kind=kind).status_code == 415


def test_a_full_disk_and_an_instance_that_is_too_large(port: int, service: StowService) -> None:
    service.spool.largest_bytes = 10_000
    answer = push(port, body(instance(20_000), instance()))
    assert answer.status_code == 202 and answer.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0xC000]
    service.spool.floor_bytes = 1 << 60
    assert push(port, body(instance())).status_code == 503
    assert len(service.spool.files()) == 1 and list(service.spool.partial.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"--b--", body(instance())[:-9], b"\xff" * 100_000, b"--b\r\n" * 1000])
def test_a_body_that_is_none_or_broken_off_is_no_success(port: int, service: StowService, content: bytes) -> None:
    assert push(port, content).status_code == 400
    assert list(service.spool.partial.iterdir()) == []
    assert push(port, body(instance())).status_code == 200


def test_a_gateway_that_falls_silent_is_not_waited_for(port: int, service: StowService) -> None:
    head = f"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += 'Content-Type: multipart/related; type="application/dicom"; boundary=b\r\n\r\n'
    with socket.create_connection(("127.0.0.1", port), timeout=20) as silent:
        silent.sendall(head.encode() + body(instance(500_000))[:300_000])
        started = time.monotonic()
        assert silent.recv(100).startswith(b"HTTP/1.1 400") and time.monotonic() - started < 10
    assert list(service.spool.partial.iterdir()) == []


def test_an_unforeseen_error_costs_one_instance(
    port: int, service: StowService, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Incoming, "keep", lambda self: 1 / 0)
        assert push(port, body(instance())).status_code == 409
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "settle", lambda self: (_ for _ in ()).throw(ResourceError("disk", "failed")))
        assert push(port, body(instance())).status_code == 503
    assert push(port, body(instance())).status_code == 200


@pytest.mark.parametrize("head", [b"", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM\2\0\0\0OB\0\0\xff\xff\xff\xff" * 9])
def test_what_has_no_file_meta_information_is_no_instance(head: bytes) -> None:
    with pytest.raises(ValueError, match=r"DICOM|meta"):
        stow.file_meta(head)


def test_the_token_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    made = stow.token(tmp_path)
    assert stow.token(tmp_path) == made and (tmp_path / "stow.token").stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="certificate and key"):
        stow.serving(StowService(Spool(tmp_path / "s", b"s"), made, StowSettings(certificate=tmp_path / "x")))
