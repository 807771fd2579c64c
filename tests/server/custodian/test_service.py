"""The custodian's port: whatever one message is or does, it costs that message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from usfmae.core import audit, keys
from usfmae.core.federated.sealed import envelope
from usfmae.core.federated.sealed.envelope import Kind
from usfmae.server.custodian.home import CustodianHome, CustodianSettings, create
from usfmae.server.custodian.service import LARGEST, Service

COORDINATOR = keys.new_signing_key()


@pytest.fixture
def home(tmp_path: Path) -> CustodianHome:
    public = tmp_path / "coordinator.pem"
    public.write_text(keys.public_pem(COORDINATOR))
    create(tmp_path / "keeper", CustodianSettings(), public)
    return CustodianHome(tmp_path / "keeper")


@pytest.fixture
def port(home: CustodianHome) -> TestClient:
    return TestClient(Service(home).application(), raise_server_exceptions=False)


def works(port: TestClient, home: CustodianHome) -> bool:
    """A message that is refused by rule still is: the process goes on, and says why."""
    before = len(list(audit.entries(home.audit)))
    answer = port.post("/message", json=envelope.signed(Kind.OPEN, {"campaign": "c"}, COORDINATOR))
    return answer.status_code == 409 and len(list(audit.entries(home.audit))) == before + 1


@pytest.mark.parametrize("path", ["/message", "/share"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[" * 100_000, 400),
        (b'{"kind": 7}', 400),
        (b"\xff\xfe", 400),
        (b"{}", 409),
        (json.dumps({"kind": "sum", "text": "{}", "signature": "AAAA"}).encode(), 409),
        (b" " * (LARGEST + 1), 413),
    ],
    ids=["empty", "deep", "a number", "no text", "no kind", "forged", "too large"],
)
def test_what_is_no_message_costs_itself(
    port: TestClient, home: CustodianHome, path: str, body: bytes, status: int
) -> None:
    assert port.post(path, content=body).status_code == status
    assert works(port, home)


@pytest.mark.parametrize(
    "boundary", ["core.federated.sealed.custody.Custodian.answer", "core.federated.sealed.envelope.read"]
)
def test_an_unforeseen_exception_costs_its_message(
    port: TestClient, home: CustodianHome, monkeypatch: pytest.MonkeyPatch, boundary: str
) -> None:
    def unforeseen(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nobody thought of this")

    with monkeypatch.context() as patched:
        patched.setattr(f"usfmae.{boundary}", unforeseen)
        answer = port.post("/message", json=envelope.signed(Kind.OPEN, {}, COORDINATOR))
    assert answer.status_code == 500 and "nobody thought" not in answer.text
    assert works(port, home)
