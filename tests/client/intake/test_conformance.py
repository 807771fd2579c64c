"""The DICOM conformance statement says what the code does: it is made from it, and tried on a running listener."""

from __future__ import annotations

import importlib.util
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pynetdicom import AE, build_context
from pynetdicom.presentation import PresentationContext

from usfmae.client.intake.cstore import Listener, listen
from usfmae.client.intake.spool import Spool
from usfmae.core.config.sources import CstoreSettings

from .test_dimse_server import item, request

ROOT = Path(__file__).parents[3]
STATEMENT = (ROOT / "docs" / "dicom-conformance.md").read_text()


def test_the_statement_is_what_the_code_makes_of_itself(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("conformance", ROOT / "docs" / "conformance.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    made.write_conformance(tmp_path / "made.md")
    assert (tmp_path / "made.md").read_text() == STATEMENT, "run 'python docs/conformance.py'"


def uids_below(heading: str) -> list[str]:
    section = STATEMENT.split(f"### {heading}\n")[1].split("\n##")[0]
    return re.findall(r"\| ([\d.]+) \|", section)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Listener]:
    made = listen(CstoreSettings(allow=("PACS1",)), Spool(tmp_path / "spool", b"s" * 32))
    yield made
    made.stop()


def test_the_listener_accepts_what_the_statement_names_and_nothing_else(running: Listener) -> None:
    classes, syntaxes = uids_below("SOP classes"), uids_below("Transfer syntaxes")
    assert len(classes) == 7 and len(syntaxes) == 25
    sender = AE(ae_title="PACS1")
    sender.requested_contexts = [_context(uid, syntaxes) for uid in classes]
    link = sender.associate("127.0.0.1", running.port, ae_title="USFMAE")
    assert {str(c.abstract_syntax) for c in link.accepted_contexts} == set(classes)
    link.release()
    for offered in (*syntaxes, "1.2.840.10008.1.2.4.110"):
        sender = AE(ae_title="PACS1")
        sender.requested_contexts = [_context(classes[0], [offered])]
        link = sender.associate("127.0.0.1", running.port, ae_title="USFMAE")
        assert link.is_established == (offered in syntaxes), offered
        link.release()


def _context(uid: str, syntaxes: list[str]) -> PresentationContext:
    return build_context(uid, syntaxes if uid != "1.2.840.10008.1.1" else ["1.2.840.10008.1.2"])


def test_of_what_is_offered_the_senders_first_choice_is_taken(running: Listener) -> None:
    sender = AE(ae_title="PACS1")
    order = ["1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1"]
    sender.requested_contexts = [_context(uids_below("SOP classes")[0], order)]
    link = sender.associate("127.0.0.1", running.port, ae_title="USFMAE")
    assert link.accepted_contexts[0].transfer_syntax == ["1.2.840.10008.1.2.5"]
    link.release()


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ((b"PACS1".ljust(16), b"PACS9".ljust(16)), (1, 1, 3)),
        ((b"USFMAE".ljust(16), b"ELSE".ljust(16)), (1, 1, 7)),
        ((b"\0\1\0\0USFMAE", b"\0\2\0\0USFMAE"), (1, 2, 2)),
    ],
)
def test_a_rejection_has_the_source_and_reason_of_the_statement(
    running: Listener, change: tuple[bytes, bytes], answer: tuple[int, int, int]
) -> None:
    with socket.create_connection(("127.0.0.1", running.port), 20) as link:
        link.sendall(request().replace(*change))
        assert link.recv(100) == bytes([3, 0, 0, 0, 0, 4, 0, *answer])
    assert f"| {answer[1]} | {answer[2]} |" in STATEMENT


def test_another_application_is_rejected(running: Listener) -> None:
    with socket.create_connection(("127.0.0.1", running.port), 20) as link:
        link.sendall(request().replace(item(0x10, b"1.2.840.10008.3.1.1.1"), item(0x10, b"1.2.840.10008.3.1.1.2")))
        assert link.recv(100) == bytes([3, 0, 0, 0, 0, 4, 0, 1, 1, 2])
