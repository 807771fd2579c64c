"""C-STORE as bytes: the same file however a message is cut, the answers of the standard, an end for what is none."""

from __future__ import annotations

import io
import os
import socket
import struct
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

from usfmae.client.intake import association, dimse
from usfmae.client.intake.cstore import Listener, listen
from usfmae.client.intake.spool import Spool
from usfmae.core.config.sources import CstoreSettings

REQUEST = dimse.StoreRequest(3, dimse.C_STORE, 7, UltrasoundImageStorage.encode(), b"1.2.840.1", True)


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
    raw.settimeout(60)
    raw.sendall(head + b"x" * 100)
    if link:  # its own thread reads the abort and closes the socket
        deadline = time.monotonic() + 60  # well before the association would be idle for too long
        while link.is_established and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not link.is_established
    else:
        assert raw.recv(1000) == b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x06"  # A-ABORT, by the provider
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


def test_an_instance_goes_to_its_file_while_it_comes(listener: Listener, spool: Spool) -> None:
    """However long it is, memory does not hold it."""
    link, sent = call(listener.port), instance(3_000_000)
    raw = link.dul.socket.socket  # type: ignore[union-attr]
    assert raw is not None
    whole = cstore_request(link, sent)
    raw.sendall(whole[:-1000])
    deadline = time.monotonic() + 60
    while sum(f.stat().st_size for f in spool.partial.iterdir()) < 2_800_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    (partial,) = spool.partial.iterdir()
    assert partial.stat().st_size > 2_800_000 and spool.files() == []
    raw.sendall(whole[-1000:])
    while not spool.files() and time.monotonic() < deadline:
        time.sleep(0.01)
    link.abort()
    assert stored(spool) == [sent.PixelData]


@pytest.fixture
def flushed(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files there were at each flush of the disk."""
    seen: list[int] = []
    monkeypatch.setattr("usfmae.client.intake.spool.flush_disk", lambda folder: seen.append(len(spool.files())))
    return seen


def test_what_a_released_association_sent_is_on_disk(listener: Listener, spool: Spool, flushed: list[int]) -> None:
    link = call(listener.port)
    for _ in range(5):
        assert link.send_c_store(instance()).Status == 0x0000
    link.release()
    assert link.is_released and flushed[-1] == 5


def test_in_a_pause_what_came_is_put_on_disk(listener: Listener, flushed: list[int]) -> None:
    link = call(listener.port)
    assert link.send_c_store(instance()).Status == 0x0000
    deadline = time.monotonic() + 20
    while not flushed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert flushed == [1] and link.is_established, "only flushed when it ended"
    link.release()
    assert flushed == [1], "flushed again, though nothing had come"


def test_many_instances_without_a_pause_are_put_on_disk_in_batches(
    listener: Listener, flushed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(association, "BATCH", 3)
    monkeypatch.setattr(association, "PAUSE", 5.0)
    link = call(listener.port)
    for _ in range(7):
        assert link.send_c_store(instance()).Status == 0x0000
    assert flushed == [3, 6]
    link.release()
    assert flushed == [3, 6, 7]


def test_a_transfer_whose_flush_failed_does_not_end_in_order(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("usfmae.client.intake.spool.flush_disk", broken)
    monkeypatch.setattr(association, "PAUSE", 5.0)
    link = call(listener.port)
    assert link.send_c_store(instance()).Status == 0x0000
    link.release()
    assert link.is_aborted and not link.is_released


def test_a_listener_that_stops_has_put_on_disk_what_came(
    listener: Listener, flushed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(association, "PAUSE", 5.0)
    link = call(listener.port)
    assert link.send_c_store(instance()).Status == 0x0000
    listener.stop()
    assert flushed == [1]
    link.abort()


COMMAND_AND_LAST, DATA_AND_LAST = 3, 2


@pytest.mark.parametrize(
    ("context", "control", "content"),
    [
        (1, DATA_AND_LAST, b"a data set that no command announced"),
        (99, COMMAND_AND_LAST, b""),  # a context nobody accepted
        (1, COMMAND_AND_LAST, b"\xff" * 30),
        (1, COMMAND_AND_LAST, b"\0\0\0\1\2\0\0\0\x20\0\0\0\x10\1\2\0\0\0\1\0\0\0\0\x08\2\0\0\0\1\1"),  # C-FIND
        (1, 1, b"\0" * 20_000),  # a command set without an end
    ],
)
def test_what_is_no_storing_ends_the_association_and_no_other(
    listener: Listener, spool: Spool, context: int, control: int, content: bytes
) -> None:
    link, other = call(listener.port), call(listener.port)
    raw = link.dul.socket.socket  # type: ignore[union-attr]
    assert raw is not None
    fragment = struct.pack(">IBB", len(content) + 2, context, control) + content
    raw.sendall(struct.pack(">BxI", 4, len(fragment)) + fragment)
    deadline = time.monotonic() + 20
    while not link.is_aborted and time.monotonic() < deadline:
        time.sleep(0.02)
    assert link.is_aborted and spool.files() == []
    assert other.send_c_store(instance()).Status == 0x0000
    other.release()


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
    meta = dcmread(io.BytesIO(dimse.file_head(REQUEST, JPEGBaseline8Bit))).file_meta
    assert meta.TransferSyntaxUID == JPEGBaseline8Bit and meta.MediaStorageSOPInstanceUID == "1.2.840.1"
    assert meta.MediaStorageSOPClassUID == UltrasoundImageStorage
    assert meta.FileMetaInformationGroupLength == len(dimse.file_head(REQUEST, JPEGBaseline8Bit)) - 128 - 4 - 12
    assert meta.FileMetaInformationVersion == b"\0\1"


@pytest.mark.parametrize("longest", [0, 40, 16_384])
def test_an_answer_is_cut_as_the_sender_wants(longest: int) -> None:
    pdus, message = dimse.response(REQUEST, 0, longest), DIMSEMessage()
    parts = 0
    while pdus:
        length = 6 + int.from_bytes(pdus[2:6], "big")
        assert not longest or length - 6 <= longest
        pdu = P_DATA_TF()
        pdu.decode(pdus[:length])
        whole, pdus, parts = message.decode_msg(pdu.to_primitive()), pdus[length:], parts + 1
    assert whole and isinstance(message, C_STORE_RSP) and (parts > 1) == (longest == 40)
    assert message.command_set.AffectedSOPInstanceUID == "1.2.840.1"


@pytest.mark.parametrize("content", [b"", b"\0", b"\0\0\2\0\xff\xff\xff\xff1.2", b"\1\0\2\0\0\0\0\0", b"\xff" * 40])
def test_rubbish_is_no_request(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"element|command set"):
        dimse.request(1, content)


@pytest.mark.parametrize("content", [b"\0\0\0\1\1", b"\0\0\0\1\1\0", b"\xff\xff\xff\xff\1\3abc", b"\0\0\0\3\1\3a\0"])
def test_rubbish_holds_no_fragments(content: bytes) -> None:
    with pytest.raises(ValueError, match="fragment"):
        list(dimse.fragments(memoryview(content)))
