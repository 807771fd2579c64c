"""The C-STORE listener: who may send, what "success" means, what a broken sender gets."""

from __future__ import annotations

import io
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, JPEGBaseline8Bit, UltrasoundImageStorage, generate_uid
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from usfmae.client.intake import dimse_server
from usfmae.client.intake.cstore import Listener, listen
from usfmae.client.intake.spool import Spool
from usfmae.core import log
from usfmae.core.config.sources import CstoreSettings
from usfmae.core.errors import ConfigError, ResourceError

SECRET = b"s" * 32
IDLE = 3  # seconds: long enough for six associations on a busy machine


def instance() -> Dataset:
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = UltrasoundImageStorage, generate_uid(), "US"
    data.PatientName = "DOE^JANE"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return data


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", SECRET)


@pytest.fixture
def listener(spool: Spool) -> Iterator[Listener]:
    running = listen(CstoreSettings(allow=("PACS1",), associations=6, idle_seconds=60), spool)
    yield running
    running.stop()


@pytest.fixture
def impatient(spool: Spool) -> Iterator[Listener]:
    running = listen(CstoreSettings(allow=("PACS1",), associations=6, idle_seconds=IDLE), spool)
    yield running
    running.stop()


def call(port: int, calling: str = "PACS1", called: str = "USFMAE", tls: ssl.SSLContext | None = None) -> Association:
    sender = AE(ae_title=calling)
    sender.add_requested_context(UltrasoundImageStorage, [JPEGBaseline8Bit])
    sender.add_requested_context(Verification)
    sender.acse_timeout = sender.dimse_timeout = sender.network_timeout = 10
    return sender.associate("127.0.0.1", port, ae_title=called, tls_args=(tls, None) if tls else None)


def test_stored_as_sent_and_again_is_one_file(listener: Listener, spool: Spool) -> None:
    sent = instance()
    link = call(listener.port)
    assert [link.send_c_store(sent).Status for _ in range(2)] == [0x0000, 0x0000]
    assert link.send_c_echo().Status == 0x0000
    link.release()
    (file,) = spool.files()
    stored = dcmread(io.BytesIO(file.read_bytes()))
    assert stored.SOPInstanceUID == sent.SOPInstanceUID and stored.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    assert str(sent.SOPInstanceUID) not in str(file)
    assert (listener.counts["stored"], listener.counts["repeated"]) == (1, 1)
    assert spool._flushes.covered == 2, "acknowledged before it was on disk"


def request(calling: str, called: str) -> bytes:
    """An A-ASSOCIATE-RQ for verification (PS3.8 section 9.3.2)."""
    context = b"".join(item(kind, uid) for kind, uid in ((0x30, b"1.2.840.10008.1.1"), (0x40, b"1.2.840.10008.1.2")))
    items = item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, b"\1\0\0\0" + context)
    items += item(0x50, item(0x51, b"\0\0\x40\0"))
    body = struct.pack(">Hxx16s16s32x", 1, called.ljust(16).encode(), calling.ljust(16).encode()) + items
    return struct.pack(">BxI", 1, len(body)) + body


def item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(content)) + content


@pytest.mark.parametrize(("calling", "called"), [("STRANGER", "USFMAE"), ("PACS1", "SOMEONE"), ("", "USFMAE")])
def test_a_wrong_ae_title_is_rejected(
    listener: Listener, spool: Spool, calling: str, called: str, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("127.0.0.1", listener.port), 60) as link:
        # By hand: pynetdicom now and then takes a quick no for an abort.
        link.sendall(request(calling or "X", called))
        assert link.recv(100) == b"\3\0\0\0\0\4\0\1\1" + (b"\7" if calling == "PACS1" else b"\3")
    deadline = time.monotonic() + 20
    while "association rejected" not in caplog.text and time.monotonic() < deadline:  # said after it is answered
        time.sleep(0.01)
    (said,) = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "association rejected"]
    assert said["why"] == ("calls another title than cstore.ae_title" if calling == "PACS1" else "not in cstore.allow")
    assert listener.counts["rejected"] == 1 and spool.files() == []


def test_below_the_floor_the_sender_hears_out_of_resources(listener: Listener, spool: Spool) -> None:
    spool.floor_bytes = 1 << 60
    link = call(listener.port)
    assert link.send_c_store(instance()).Status == 0xA700
    spool.floor_bytes = 0
    assert link.send_c_store(instance()).Status == 0x0000
    link.release()
    assert len(spool.files()) == 1


def test_half_an_association_ends_and_others_go_on(impatient: Listener, spool: Spool) -> None:
    for words in (b"", b"\x01\x00\x00\x00\x00\xff", b"GET / HTTP/1.1\r\n\r\n", b"\x04" + b"\xff" * 64):
        with socket.create_connection(("127.0.0.1", impatient.port), timeout=5) as half:
            half.sendall(words)
    link = call(impatient.port)
    assert link.send_c_store(instance()).Status == 0x0000
    link.abort()  # without a release
    silent = call(impatient.port)
    assert silent.is_established
    deadline = time.monotonic() + 60
    while silent.is_established and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not silent.is_established, "a silent association holds its place for ever"
    assert len(spool.files()) == 1


def test_a_sender_that_falls_silent_within_a_message_gives_its_place_back(impatient: Listener, spool: Spool) -> None:
    links = [call(impatient.port) for _ in range(6)]
    for link in links:
        raw = link.dul.socket.socket  # type: ignore[union-attr]
        raw.sendall(b"\x04\x00\x00\x01\x00\x00 a PDU of 64 KiB, and no more than this of it")  # type: ignore[union-attr]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        fresh = call(impatient.port)
        if fresh.is_established:
            break
        time.sleep(0.2)
    assert fresh.is_established, "half a message holds a place for ever"
    assert fresh.send_c_store(instance()).Status == 0x0000
    fresh.release()


def test_more_associations_than_allowed_wait(listener: Listener) -> None:
    links = [call(listener.port) for _ in range(7)]
    assert [link.is_established for link in links] == [*[True] * 6, False]
    for link in links[:6]:
        link.release()


def test_who_only_looks_whether_the_port_is_open_leaves_no_word_in_the_log(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    socket.create_connection(("127.0.0.1", listener.port)).close()
    link = call(listener.port)
    link.abort()
    deadline = time.monotonic() + 20
    while listener.server.connections and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not listener.server.connections and not caplog.text


def test_a_place_that_was_given_back_is_given_again(listener: Listener, spool: Spool) -> None:
    for number in range(20):
        link = call(listener.port)
        assert link.send_c_store(instance()).Status == 0x0000
        link.release() if number % 2 else link.abort()
    assert len(spool.files()) == 20 and listener.counts["rejected"] == 0


def test_a_flood_of_silent_connections_keeps_nobody_out(listener: Listener, spool: Spool) -> None:
    """The one that has waited longest goes; a sender that asks at once gets in while they stand."""
    flood = [socket.create_connection(("127.0.0.1", listener.port), timeout=10) for _ in range(60)]
    link = call(listener.port)
    assert link.is_established and link.send_c_store(instance()).Status == 0x0000
    link.release()
    assert flood[0].recv(10) == b"" and listener.counts["turned_away"] >= 52
    for silent in flood:
        silent.close()


def test_echoes_do_not_keep_an_association(impatient: Listener) -> None:
    link = call(impatient.port)
    deadline = time.monotonic() + 20
    while link.is_established and time.monotonic() < deadline:
        link.send_c_echo()
        time.sleep(0.3)
    assert not link.is_established, "an echo now and then holds a place for ever"


@pytest.mark.parametrize("below", ["6.1", "6", "3.1", "3"])
def test_ultrasound_of_today_and_the_retired_classes_are_stored(listener: Listener, spool: Spool, below: str) -> None:
    uid = f"1.2.840.10008.5.1.4.1.1.{below}"
    sent = instance()
    sent.SOPClassUID = uid
    sender = AE(ae_title="PACS1")
    sender.add_requested_context(uid, [JPEGBaseline8Bit])
    link = sender.associate("127.0.0.1", listener.port, ae_title="USFMAE")
    assert link.is_established and link.send_c_store(sent).Status == 0x0000
    link.release()
    assert dcmread(spool.files()[0], specific_tags=["SOPClassUID"]).SOPClassUID == uid


def test_other_classes_are_not_taken_unless_the_settings_name_them(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    private, tomography = "1.3.46.670589.2.5.1.1", "1.2.840.10008.5.1.4.1.1.2"
    sent = instance()
    sent.SOPClassUID = private
    sender = AE(ae_title="PACS1")
    for uid in (private, tomography):
        sender.add_requested_context(uid, [JPEGBaseline8Bit])
    for named in (False, True):
        classes = (private,) if named else ()
        running = listen(CstoreSettings(allow=("PACS1",), sop_classes=classes), spool)
        with caplog.at_level("INFO"):
            link = sender.associate("127.0.0.1", running.port, ae_title="USFMAE")
        assert [str(c.abstract_syntax) for c in link.accepted_contexts] == list(classes)
        assert not named or link.send_c_store(sent).Status == 0x0000
        link.release()
        running.stop()
        assert running.counts["unsupported"] == (1 if named else 2)
        assert running.unsupported["PACS1", tomography] == 1
    assert len(spool.files()) == 1
    lines = [log._Lines(False).format(record) for record in caplog.records]
    assert any(f"sop_class={private}" in line and "SOP class not accepted" in line for line in lines)


def test_an_instance_beyond_the_limit_is_refused_for_good(listener: Listener, spool: Spool) -> None:
    spool.largest_bytes = 100_000
    link, large = call(listener.port), instance()
    large.add_new("PixelData", "OB", b"\0" * 200_000)
    assert link.send_c_store(large).Status == 0xC000
    assert link.send_c_store(instance()).Status == 0x0000
    link.release()
    assert len(spool.files()) == 1 and list(spool.partial.iterdir()) == []


@pytest.mark.parametrize("name", ["incoming", "settle"])
def test_an_unforeseen_error_costs_one_instance(
    listener: Listener, spool: Spool, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    link = call(listener.port)
    with monkeypatch.context() as patch:
        patch.setattr(Spool, name, lambda self: 1 / 0)
        assert link.send_c_store(instance()).Status == 0xA700
    assert link.send_c_store(instance()).Status == 0x0000
    link.release()
    assert listener.counts["refused"] == 1


def test_a_request_for_another_class_than_was_negotiated_is_refused_for_good(listener: Listener, spool: Spool) -> None:
    """The association is for ultrasound, the request within it is for CT."""
    association = call(listener.port)
    context = next(c for c in association.accepted_contexts if c.abstract_syntax == UltrasoundImageStorage)
    wanted = C_STORE()
    wanted.MessageID, wanted.Priority = 1, 2
    wanted.AffectedSOPClassUID, wanted.AffectedSOPInstanceUID = CTImageStorage, UID("1.2.3")
    wanted.DataSet = io.BytesIO(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100")
    message = C_STORE_RQ()
    message.primitive_to_message(wanted)
    association._reactor_checkpoint.clear()  # the answer is for us
    for part in message.encode_msg(context.context_id, 16_000):
        association.dul.send_pdu(part)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    assert answer is not None and answer.Status == 0x0122
    association.release()
    assert spool.files() == [] and listener.counts["refused"] == 1


def test_nobody_may_send_without_an_allow_list(spool: Spool) -> None:
    with pytest.raises(ConfigError, match=r"cstore\.allow"):
        listen(CstoreSettings(), spool)


def test_a_taken_port_is_one_clear_error(listener: Listener, spool: Spool) -> None:
    with pytest.raises(ResourceError, match=r"cstore\.port"):
        listen(CstoreSettings(port=listener.port, allow=("A",)), spool)


def _certificate(folder: Path, name: str) -> tuple[Path, Path]:
    import subprocess

    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    make = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -addext subjectAltName=IP:127.0.0.1"
    )
    command = [*make.split(), "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def test_tls_with_a_certificate_of_the_sender(spool: Spool, tmp_path: Path) -> None:
    ours, theirs = _certificate(tmp_path, "listener"), _certificate(tmp_path, "pacs")
    settings = CstoreSettings(allow=("PACS1",), certificate=ours[0], key=ours[1], client_ca=theirs[0])
    running = listen(settings, spool)
    try:
        assert not call(running.port).is_established, "plain DICOM on the TLS port"
        trusted = ssl.create_default_context(cafile=str(ours[0]))
        trusted.check_hostname = False
        nameless = call(running.port, tls=trusted)
        assert not nameless.is_established or nameless.send_c_echo().get("Status") is None
        trusted.load_cert_chain(*theirs)
        link = call(running.port, tls=trusted)
        assert link.send_c_store(instance()).Status == 0x0000
        link.release()
    finally:
        running.stop()
    assert len(spool.files()) == 1


def test_who_says_nothing_on_the_tls_port_keeps_nobody_waiting(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No word, and half a word, of the TLS handshake; each ends when it has been silent for too long."""
    monkeypatch.setattr(dimse_server, "ASKING_SECONDS", 2.0)
    ours = _certificate(tmp_path, "listener")
    settings = CstoreSettings(allow=("PACS1",), certificate=ours[0], key=ours[1], idle_seconds=IDLE)
    running = listen(settings, spool)
    try:
        silent = [socket.create_connection(("127.0.0.1", running.port), timeout=60) for _ in range(2)]
        silent[1].sendall(b"\x16\x03\x01\x02\x00\x01")
        trusted = ssl.create_default_context(cafile=str(ours[0]))
        trusted.check_hostname = False
        link = call(running.port, tls=trusted)
        assert link.is_established and link.send_c_store(instance()).Status == 0x0000
        link.release()
        assert [half.recv(100) for half in silent] == [b"", b""], "a silent connection is kept for ever"
    finally:
        running.stop()


def test_an_expired_certificate_of_a_sender_is_refused(spool: Spool, tmp_path: Path) -> None:
    ours = _certificate(tmp_path, "listener")
    theirs = tmp_path / "old.pem", tmp_path / "old.key"
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pacs")])
    start = datetime.now(UTC) - timedelta(days=30)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(start).not_valid_after(start + timedelta(days=29))
    theirs[0].write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    theirs[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    settings = CstoreSettings(allow=("PACS1",), certificate=ours[0], key=ours[1], client_ca=theirs[0])
    running = listen(settings, spool)
    try:
        trusted = ssl.create_default_context(cafile=str(ours[0]))
        trusted.check_hostname = False
        trusted.load_cert_chain(*theirs)
        link = call(running.port, tls=trusted)
        assert not link.is_established or link.send_c_store(instance()).get("Status") is None
    finally:
        running.stop()
    assert spool.files() == []
