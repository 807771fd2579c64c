"""Debian's services, started for a test on free ports of loopback and ended by their process id."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ports import free_port


def needs(program: str, package: str) -> str:
    places = os.pathsep.join((os.environ["PATH"], "/usr/sbin", str(Path(sys.executable).parent)))
    found = shutil.which(program, path=places)
    if not found:
        pytest.skip(f"{program} is not installed: apt-get install {package}")
    return found


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"ended with {process.returncode}"
        if ready():
            return
        time.sleep(0.05)
    raise AssertionError("not ready in time")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


@dataclass
class Orthanc:
    web: int
    dicom: int
    listener: int  # port it sends to when told to

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.web}"

    def rest(self, path: str, body: object = None) -> object:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=30) as answer:
            return json.loads(answer.read())


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    program = needs("Orthanc", "orthanc orthanc-dicomweb")
    pacs = Orthanc(free_port(), free_port(), free_port())
    config = {
        "StorageDirectory": str(tmp_path / "orthanc"),
        "IndexDirectory": str(tmp_path / "orthanc"),
        "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
        "HttpPort": pacs.web,
        "DicomPort": pacs.dicom,
        "DicomAet": "PACS1",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomModalities": {"site": ["USFMAE", "127.0.0.1", pacs.listener]},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (tmp_path / "orthanc").mkdir()
    file = tmp_path / "orthanc.json"
    file.write_text(json.dumps(config))
    with (tmp_path / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([program, str(file)], stdout=log, stderr=log)
        try:
            wait_for(lambda: answers(pacs.web) and answers(pacs.dicom), process)
            yield pacs
        finally:
            end(process)


@pytest.fixture
def storescu() -> Callable[..., subprocess.CompletedProcess[str]]:
    """DCMTK's sender: `storescu(port, *files, calling="PACS1")`."""
    program = needs("storescu", "dcmtk")

    def send(
        port: int, *what: str | Path, calling: str = "PACS1", called: str = "USFMAE", options: str = ""
    ) -> subprocess.CompletedProcess[str]:
        command = [program, "-v", *options.split(), "-aet", calling, "-aec", called, "127.0.0.1", str(port)]
        return subprocess.run([*command, *map(str, what)], capture_output=True, text=True, timeout=600)

    return send


def tiny(folder: Path, count: int) -> None:
    """Many tiny instances, as a runaway sender produces."""
    folder.mkdir()
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid

    data = Dataset()
    data.SOPClassUID, data.Modality, data.PatientID = UltrasoundImageStorage, "US", "1"
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.Rows = data.Columns = 16
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelData = 1, "MONOCHROME2", bytes(256)
    for number in range(count):
        data.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.{number + 1}"
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = UltrasoundImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.save_as(folder / f"{number}.dcm", enforce_file_format=True)


LISTENER = """
import sys, time
from pathlib import Path
from tests.ports import free_port
from usfmae.client.intake.cstore import listen
from usfmae.client.intake.spool import Spool
from usfmae.core.config.sources import CstoreSettings
running = listen(CstoreSettings(port=int(sys.argv[1]), allow=("PACS1",)), Spool(Path(sys.argv[2]), b"s" * 32))
time.sleep(3600)
"""


@pytest.fixture
def listener_process(tmp_path: Path) -> Iterator[Callable[[int], subprocess.Popen[bytes]]]:
    """Starts our listener as a process of its own over `tmp_path/spool`."""
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", LISTENER, str(port), str(tmp_path / "spool")])
        started.append(process)
        wait_for(lambda: answers(port), process)
        return process

    yield start
    for process in started:
        end(process)
