"""A real PACS (Orthanc) and a real sender (DCMTK) against the site's two network sources."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import UltrasoundImageStorage

from tests.ports import free_port
from usfmae.client.intake.cstore import listen
from usfmae.client.intake.dicomweb import pull
from usfmae.client.intake.spool import Spool
from usfmae.core.config.sources import CstoreSettings, DicomwebSettings

from .conftest import Orthanc, tiny

pytestmark = pytest.mark.system

SECRET = b"s" * 32
Send = Callable[..., "subprocess.CompletedProcess[str]"]


def ultrasound(files: list[Path], folder: Path) -> list[Path]:
    """The wheel's real colour scans, marked as ultrasound as a scanner would send them."""
    folder.mkdir()
    made = []
    for file in files:
        data = dcmread(file)
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UltrasoundImageStorage
        data.Modality = "US"
        made.append(folder / file.name)
        data.save_as(made[-1])
    return made


# storescu proposes one family of transfer syntaxes a call.
PROPOSE = {"1.2.840.10008.1.2.4.50": "-xy", "1.2.840.10008.1.2.5": "-xr"}


def send_all(storescu: Send, port: int, files: list[Path], called: str = "USFMAE") -> None:
    for file in files:
        flag = PROPOSE.get(dcmread(file).file_meta.TransferSyntaxUID, "-x=")
        done = storescu(port, file, called=called, options=f"-R {flag}")
        assert done.returncode == 0, done.stderr


def pixels(files: list[Path]) -> set[bytes]:
    return {dcmread(f).PixelData for f in files}


def test_storescu_sends_every_transfer_syntax_unchanged(
    storescu: Send, wheel_dicoms: list[Path], tmp_path: Path
) -> None:
    sent = ultrasound(wheel_dicoms, tmp_path / "sent")
    spool, port = Spool(tmp_path / "spool", SECRET), free_port()
    running = listen(CstoreSettings(port=port, allow=("PACS1",)), spool)
    try:
        send_all(storescu, port, sent)
        stranger = storescu(port, *sent, calling="STRANGER")
        wrong = storescu(port, *sent, called="ELSEWHERE")
    finally:
        running.stop()
    assert stranger.returncode != 0 and "Calling AE Title Not Recognized" in stranger.stderr
    assert wrong.returncode != 0 and "Called AE Title Not Recognized" in wrong.stderr
    assert pixels(spool.files()) == pixels(sent)


def test_orthanc_sends_to_the_listener(
    orthanc: Orthanc, storescu: Send, wheel_dicoms: list[Path], tmp_path: Path
) -> None:
    sent = ultrasound(wheel_dicoms, tmp_path / "sent")
    send_all(storescu, orthanc.dicom, sent, "PACS1")
    spool = Spool(tmp_path / "spool", SECRET)
    running = listen(CstoreSettings(port=orthanc.listener, allow=("PACS1",)), spool)
    try:
        orthanc.rest("/modalities/site/store", orthanc.rest("/instances"))
    finally:
        running.stop()
    assert pixels(spool.files()) == pixels(sent)


def test_dicomweb_pulls_what_orthanc_holds_and_then_only_what_is_new(
    orthanc: Orthanc, storescu: Send, wheel_dicoms: list[Path], tmp_path: Path
) -> None:
    sent = ultrasound(wheel_dicoms, tmp_path / "sent")
    send_all(storescu, orthanc.dicom, sent[:2], "PACS1")
    spool, memory = Spool(tmp_path / "spool", SECRET), tmp_path / "pull.db"
    settings = DicomwebSettings(url=f"{orthanc.url}/dicom-web", per_second=100, lookback_days=3650)
    first = pull(settings, spool, memory)
    assert (first.instances, first.failed) == (2, 0)
    assert pixels(spool.files()) == pixels(sent[:2])
    spool.drop(spool.files())  # as after packing
    assert pull(settings, spool, memory).instances == 0
    send_all(storescu, orthanc.dicom, sent[2:], "PACS1")
    assert pull(settings, spool, memory).instances == 1
    assert pixels(spool.files()) == pixels(sent[2:])


def test_kill_9_in_the_middle_of_many_instances_loses_none(
    storescu: Send, listener_process: Callable[[int], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    count = int(os.environ.get("USFMAE_TEST_INSTANCES", "1000"))
    tiny(tmp_path / "sent", count)
    port = free_port()
    process = listener_process(port)
    outcome: list[subprocess.CompletedProcess[str]] = []
    sender = threading.Thread(target=lambda: outcome.append(storescu(port, tmp_path / "sent", options="+sd -nh")))
    start = time.monotonic()
    sender.start()
    while len(list((tmp_path / "spool").glob("*/*.dcm"))) < count // 3:
        assert sender.is_alive()
        time.sleep(0.02)
    process.kill()
    process.wait(10)
    sender.join(60)
    heard = (outcome[0].stdout + outcome[0].stderr).count("Received Store Response (Success)")
    kept = list((tmp_path / "spool").glob("[0-9a-f][0-9a-f]/*.dcm"))
    assert 0 < heard <= len(kept) < count, "an instance was acknowledged and lost"
    uids = {dcmread(f).SOPInstanceUID for f in kept}
    assert len(uids) == len(kept), "half a file"

    port = free_port()
    listener_process(port)
    again = time.monotonic()
    assert storescu(port, tmp_path / "sent", options="+sd").returncode == 0
    seconds = time.monotonic() - again
    assert len(Spool(tmp_path / "spool", SECRET).files()) == count
    print(f"{count} instances in {seconds:.1f} s: {count / seconds:.0f}/s (first part {again - start:.1f} s)")
