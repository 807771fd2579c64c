"""The bounds of the acceptor: the same file however a message is cut, and an end for what is no message."""

from __future__ import annotations

import contextlib
import io
import os
import random
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
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from usfmae.client.intake import dimse_server
from usfmae.client.intake.cstore import Listener, listen
from usfmae.client.intake.spool import Spool
from usfmae.core.config.sources import CstoreSettings


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
        with contextlib.suppress(ConnectionError):
            assert raw.recv(1000) == b""
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


def test_success_is_answered_when_the_instance_is_on_disk(
    listener: Listener, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr("usfmae.client.intake.spool.flush_disk", lambda folder: seen.append(len(spool.files())))
    link = call(listener.port)
    for number in range(1, 4):
        assert link.send_c_store(instance()).Status == 0x0000
        assert seen[-1] == number
    link.release()


def test_a_disk_that_fails_is_no_success(listener: Listener, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path) -> None:
        raise OSError(5, "Input/output error")

    link, sent = call(listener.port), instance()
    with monkeypatch.context() as patch:
        patch.setattr("usfmae.client.intake.spool.flush_disk", broken)
        assert link.send_c_store(sent).Status == 0xA700
    assert link.send_c_store(sent).Status == 0x0000
    link.release()
    assert stored(spool) == [sent.PixelData]


def request(contexts: int = 1, calling: str = "PACS1", more: bytes = b"") -> bytes:
    """An A-ASSOCIATE-RQ that asks for verification so many times (PS3.8 section 9.3.2)."""
    parts = b"".join(item(kind, uid) for kind, uid in ((0x30, b"1.2.840.10008.1.1"), (0x40, b"1.2.840.10008.1.2")))
    items = item(0x10, b"1.2.840.10008.3.1.1.1")
    items += b"".join(item(0x20, bytes([(2 * n + 1) % 256, 0, 0, 0]) + parts) for n in range(contexts))
    items += item(0x50, item(0x51, b"\0\0\x40\0")) + more
    body = struct.pack(">Hxx16s16s32x", 1, b"USFMAE".ljust(16), calling.ljust(16).encode()) + items
    return struct.pack(">BxI", 1, len(body)) + body


def item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(content)) + content


@pytest.mark.parametrize("hostile", [request(5000)[:130_000], request(129), request(1, more=b"x" * 140_000)])
def test_a_request_with_too_much_in_it_is_not_even_read(listener: Listener, hostile: bytes) -> None:
    """An A-ASSOCIATE-RQ of thousands of contexts would keep pynetdicom busy for seconds."""
    with socket.create_connection(("127.0.0.1", listener.port), 20) as link:
        whole = struct.pack(">BxI", 1, len(hostile) - 6) + hostile[6:]
        with contextlib.suppress(OSError):
            link.sendall(whole)
        with contextlib.suppress(ConnectionError):
            assert link.recv(100) == b""
    after = call(listener.port)
    after.release()


def test_an_association_request_has_seconds(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent, and byte after byte: each connection is gone after `ASKING_SECONDS`."""
    monkeypatch.setattr(dimse_server, "ASKING_SECONDS", 1.0)
    running = listen(listener.settings, listener.spool)
    try:
        silent, slow = (socket.create_connection(("127.0.0.1", running.port), timeout=20) for _ in range(2))
        started = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in request():
                slow.sendall(bytes([byte]))
                time.sleep(0.2)
                if time.monotonic() - started > 10:
                    break
        assert time.monotonic() - started < 5, "a byte now and then holds a connection"
        assert silent.recv(10) == b"" and running.counts["turned_away"] == 1
    finally:
        running.stop()


def test_a_crowd_from_one_address_leaves_room_for_others(listener: Listener) -> None:
    server = listener.server
    crowd = [socket.create_connection(("127.0.0.1", listener.port), timeout=20) for _ in range(20)]
    deadline = time.monotonic() + 10
    while listener.counts["turned_away"] < 12 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len([c for c in server.connections if not c.closed]) == dimse_server.MOST_WAITING_FROM_ONE
    assert server.verify_request(socket.socket(), ("192.0.2.1", 1)), "another address"
    assert len([c for c in server.connections if not c.closed]) == dimse_server.MOST_WAITING_FROM_ONE + 1
    for one in crowd:
        one.close()


def test_requests_without_waiting_for_answers_end_the_association(
    listener: Listener, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, other = call(listener.port), call(listener.port)
    raw = link.dul.socket.socket  # type: ignore[union-attr]
    assert raw is not None
    monkeypatch.setattr(Listener, "_keep", lambda self, file: time.sleep(0.5) or True)
    with contextlib.suppress(OSError):
        raw.sendall(b"".join(cstore_request(link, instance()) for _ in range(50)))
    deadline = time.monotonic() + 20
    while not link.is_aborted and time.monotonic() < deadline:
        time.sleep(0.02)
    assert link.is_aborted, "fifty files at once"
    assert other.send_c_echo().Status == 0x0000
    other.release()


def test_damaged_bytes_end_their_association_and_no_other(listener: Listener, spool: Spool) -> None:
    """Requests and messages with bytes changed, cut and repeated: whatever they are, the listener goes on."""
    link = call(listener.port)
    message, chance = cstore_request(link, instance(300)), random.Random(1)
    for _ in range(60):
        damaged = bytearray(request() + message)
        for _ in range(chance.randrange(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        del damaged[chance.randrange(len(damaged)) :]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", listener.port), 5) as hostile:
            hostile.sendall(damaged)
    assert link.send_c_store(instance()).Status == 0x0000
    link.release()


def test_a_broken_transfer_leaves_no_file(listener: Listener, spool: Spool) -> None:
    link = call(listener.port)
    raw = link.dul.socket.socket  # type: ignore[union-attr]
    assert raw is not None
    raw.sendall(cstore_request(link, instance(500_000))[:400_000])
    deadline = time.monotonic() + 20
    while not list(spool.partial.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    raw.shutdown(socket.SHUT_RDWR)
    while list(spool.partial.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(spool.partial.iterdir()) == [] and spool.files() == []


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
