"""C-STORE requests read off the socket: the same bytes however they are cut, everything else left to pynetdicom."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import JPEGBaseline8Bit, UltrasoundImageStorage, generate_uid
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, C_STORE_RSP, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.sop_class import Verification

from usfmae.client.sources import dimse
from usfmae.client.sources.cstore import Listener, listen
from usfmae.client.sources.spool import Spool
from usfmae.core.config.sources import CstoreSettings

REQUEST = dimse.Request(3, b"\7\0", UltrasoundImageStorage.encode(), b"1.2.840.1", JPEGBaseline8Bit.encode())


def instance(size: int = 100) -> Dataset:
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.PixelData = UltrasoundImageStorage, generate_uid(), os.urandom(size)
    data["PixelData"].VR = "OB"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return data


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", b"s" * 32)


@pytest.fixture
def listener(spool: Spool) -> Iterator[Listener]:
    running = listen(CstoreSettings(allow=("PACS1",), idle_seconds=120), spool)
    yield running
    running.stop()


def call(port: int) -> Association:
    sender = AE(ae_title="PACS1")
    sender.add_requested_context(UltrasoundImageStorage, [JPEGBaseline8Bit])
    sender.add_requested_context(Verification)
    sender.acse_timeout = sender.dimse_timeout = sender.network_timeout = 10
    link = sender.associate("127.0.0.1", port, ae_title="USFMAE")
    assert link.is_established
    return link


def stored(spool: Spool) -> list[bytes]:
    return [dcmread(io.BytesIO(file.read_bytes())).PixelData for file in spool.files()]


@pytest.mark.parametrize("longest", [64, 300, 16_000, 0])
def test_however_the_sender_cuts_a_message_the_same_bytes_are_stored(
    listener: Listener, spool: Spool, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 64 bytes a PDU the command set itself comes in pieces, at 300 the data set does."""
    link, sent = call(listener.port), instance(40_000)
    with monkeypatch.context() as patch:
        patch.setattr(DIMSEServiceProvider, "maximum_pdu_size", longest)
        assert link.send_c_store(sent).Status == 0x0000
    assert link.send_c_echo().Status == 0x0000
    assert link.send_c_store(sent).Status == 0x0000
    link.release()
    assert link.is_released and stored(spool) == [sent.PixelData]
    assert (listener.counts["stored"], listener.counts["repeated"]) == (1, 1)


def test_requests_in_the_usual_form_do_not_pass_through_pynetdicoms_queues(
    listener: Listener, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the intake's speed rests on: an upgrade of pynetdicom that undoes it fails here."""
    passed: list[P_DATA] = []
    monkeypatch.setattr(DIMSEServiceProvider, "receive_primitive", lambda self, primitive: passed.append(primitive))
    link, sent = call(listener.port), [instance(300_000) for _ in range(3)]
    raw = link.dul.socket.socket  # type: ignore[union-attr]
    assert raw is not None
    for one in sent:
        request = cstore_request(link, one)
        raw.sendall(request)
    deadline = time.monotonic() + 60
    while len(spool.files()) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    link.abort()
    assert sorted(stored(spool)) == sorted(one.PixelData for one in sent)
    assert all(isinstance(answer(p), C_STORE_RSP) for p in passed)  # the sender's own end heard the answers


def cstore_request(link: Association, data: Dataset) -> bytes:
    """The PDUs of a C-STORE request."""
    (context,) = [cx for cx in link.accepted_contexts if cx.abstract_syntax == UltrasoundImageStorage]
    ask = C_STORE()
    ask.MessageID, ask.Priority = 1, 2
    ask.AffectedSOPClassUID, ask.AffectedSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    ask.DataSet = io.BytesIO(encode(data, False, True) or b"")
    message = C_STORE_RQ()
    message.primitive_to_message(ask)
    assert context.context_id is not None
    return b"".join(P_DATA_TF(part).encode() for part in message.encode_msg(context.context_id, 100_000))


def answer(primitive: P_DATA) -> DIMSEMessage:
    message = DIMSEMessage()
    assert message.decode_msg(primitive)
    return message


@pytest.mark.parametrize("head", [b"\x04\x00\xff\xff\xff\xff", b"\x01\x00\xff\xff\xff\xff"])
@pytest.mark.parametrize("associated", [True, False])
def test_a_pdu_of_four_gigabytes_ends_the_connection_at_once(
    listener: Listener, spool: Spool, head: bytes, associated: bool
) -> None:
    link = call(listener.port) if associated else None
    raw = link.dul.socket.socket if link else socket.create_connection(("127.0.0.1", listener.port))  # type: ignore[union-attr]
    assert raw is not None
    raw.sendall(head + b"x" * 100)
    raw.settimeout(60)
    if link:
        deadline = time.monotonic() + 60  # well before the association would be idle for too long
        while link.is_established and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not link.is_established
    else:
        assert raw.recv(1000) in (b"", b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x00")  # closed, or A-ABORT
        raw.close()
    after = call(listener.port)
    assert after.send_c_store(instance()).Status == 0x0000
    after.release()


def test_a_request_that_is_cut_off_leaves_nothing(listener: Listener, spool: Spool) -> None:
    link, sent = call(listener.port), instance(50_000)
    raw = link.dul.socket.socket  # type: ignore[union-attr]
    assert raw is not None
    raw.sendall(cstore_request(link, sent)[:20_000])
    raw.shutdown(socket.SHUT_RDWR)
    again = call(listener.port)
    assert spool.files() == [] and again.send_c_store(sent).Status == 0x0000
    again.release()
    assert stored(spool) == [sent.PixelData]


def test_the_answer_is_the_c_store_response_of_the_standard() -> None:
    pdu = P_DATA_TF()
    pdu.decode(dimse.response(REQUEST, 0xA700))
    message = answer(pdu.to_primitive())
    assert isinstance(message, C_STORE_RSP) and message.context_id == 3
    found = message.command_set
    assert (found.MessageIDBeingRespondedTo, found.Status, found.CommandDataSetType) == (7, 0xA700, 0x0101)
    assert (found.AffectedSOPClassUID, found.AffectedSOPInstanceUID) == (UltrasoundImageStorage, "1.2.840.1")
    assert found.CommandGroupLength == len(dimse.response(REQUEST, 0)) - 6 - 6 - 12


def test_the_head_of_the_file_is_file_meta_information() -> None:
    meta = dcmread(io.BytesIO(dimse.file_head(REQUEST))).file_meta
    assert meta.TransferSyntaxUID == JPEGBaseline8Bit and meta.MediaStorageSOPInstanceUID == "1.2.840.1"
    assert meta.MediaStorageSOPClassUID == UltrasoundImageStorage
    assert meta.FileMetaInformationGroupLength == len(dimse.file_head(REQUEST)) - 128 - 4 - 12
    assert meta.FileMetaInformationVersion == b"\0\1"


@pytest.mark.parametrize("content", [b"", b"\0", b"\0\0\2\0\xff\xff\xff\xff1.2", b"\1\0\2\0\0\0\0\0", b"\xff" * 40])
def test_rubbish_is_no_command_set(content: bytes) -> None:
    assert dimse.elements(content) == {}


@pytest.mark.parametrize("content", [b"\0\0\0\1\1", b"\0\0\0\1\1\0", b"\xff\xff\xff\xff\1\3abc", b"\0\0\0\3\1\3a\0"])
def test_rubbish_holds_no_fragments(content: bytes) -> None:
    assert dimse.fragments(b"\4\0\0\0\0\0" + content) == []
