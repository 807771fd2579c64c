"""C-STORE intake at the disk's pace, and nothing lost when the listener is killed: prints JSON.

    python benchmarks/intake.py --instances 10000 --associations 4

DCMTK's `storescu` sends chunk after chunk to our listener and to DCMTK's `storescp`, in turns; between them the same
files are written with a flush each by plain system calls, as many at a time as there are associations: the disk's pace.
In the middle the listener gets SIGKILL while a chunk is on its way; it is started again, and the sender sends what was
not acknowledged. At the end each instance that was acknowledged must be there, whole. Needs Debian's `dcmtk`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid

CHUNKS = 10
# DCMTK's two programs otherwise wait 40 ms for each other's acknowledgement at every message (Nagle's algorithm).
PROMPT = {**os.environ, "TCP_NODELAY": "1"}
OURS = """
import sys, time
from pathlib import Path
from usfmae.client.intake.cstore import listen
from usfmae.client.intake.spool import Spool
from usfmae.core.config.sources import CstoreSettings
settings = CstoreSettings(port=int(sys.argv[1]), allow=("PACS1",), associations=32)
listen(settings, Spool(Path(sys.argv[2]), b"s" * 32))
time.sleep(86400)
"""


def written(folder: Path, count: int, side: int) -> list[Path]:
    """Small gray ultrasound instances, all of one study."""
    data = Dataset()
    data.SOPClassUID, data.Modality, data.PatientID = UltrasoundImageStorage, "US", "1"
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.Rows = data.Columns = side
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    files = []
    for number in range(count):
        data.SOPInstanceUID, data.PixelData = f"1.2.826.0.1.3680043.8.498.{number + 1}", os.urandom(side * side)
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = UltrasoundImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        files.append(folder / f"{number}.dcm")
        data.save_as(files[-1], enforce_file_format=True)
    return files


def parted(files: list[Path], parts: int) -> list[list[Path]]:
    return [files[i::parts] for i in range(parts)]


def in_parallel(work: Callable[[list[Path]], object], parts: list[list[Path]]) -> float:
    """Seconds until all threads are done."""
    threads = [threading.Thread(target=work, args=(part,)) for part in parts]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


class Sender:
    """`storescu` processes, one association each; remembers what was acknowledged."""

    def __init__(self, associations: int) -> None:
        self.associations = associations
        self.acknowledged: set[Path] = set()
        self.said: list[str] = []

    def send(self, port: int, files: list[Path]) -> float:
        self.said.clear()
        seconds = in_parallel(lambda part: self._one(port, part), parted(files, self.associations))
        self.hear()
        return seconds

    def _one(self, port: int, files: list[Path]) -> None:
        command = ["storescu", "-v", "-nh", "-aet", "PACS1", "-aec", "USFMAE", "127.0.0.1", str(port), *map(str, files)]
        with tempfile.TemporaryFile("w+") as said:  # read when the clock has stopped
            subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, env=PROMPT)
            said.seek(0)
            self.said.append(said.read())

    def hear(self) -> None:
        """Learn from what the senders said which instances were acknowledged."""
        sending = None
        for line in "\n".join(self.said).splitlines():
            if match := re.search(r"Sending file: (.+)", line):
                sending = Path(match[1])
            elif "Received Store Response (Success)" in line and sending:
                self.acknowledged.add(sending)


class Receiver:
    """A listener in a process of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        folder.mkdir(exist_ok=True)
        self.start()

    def start(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.port = int(taken.getsockname()[1])
        ours = [sys.executable, "-c", OURS, str(self.port), str(self.folder / "spool")]
        theirs = ["storescp", "--fork", "-aet", "USFMAE", "-od", str(self.folder), str(self.port)]
        self.process = subprocess.Popen(ours if self.name == "ours" else theirs, env=PROMPT)
        while socket.socket().connect_ex(("127.0.0.1", self.port)):
            time.sleep(0.05)

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait()


def at_the_disks_pace(files: list[Path], folder: Path, associations: int) -> float:
    """Seconds to write the same bytes durably: file and folder flushed, nothing else done."""
    contents = {file: file.read_bytes() for file in files}

    def work(part: list[Path]) -> None:
        for file in part:
            target = os.open(folder / file.name, os.O_WRONLY | os.O_CREAT)
            os.write(target, contents[file])
            os.fsync(target)
            os.close(target)
            place = os.open(folder, os.O_RDONLY)
            os.fsync(place)
            os.close(place)

    return in_parallel(work, parted(files, associations))


def killed_in_the_middle(ours: Receiver, sender: Sender, files: list[Path]) -> int:
    """SIGKILL while the chunk is on its way, a new start, the rest sent; instances acknowledged before the kill."""
    before = len(sender.acknowledged)
    already = len(kept(ours))
    sending = threading.Thread(target=sender.send, args=(ours.port, files))
    sending.start()
    while len(kept(ours)) - already < len(files) // 3:
        time.sleep(0.01)
    ours.end(signal.SIGKILL)
    sending.join()
    heard = len(sender.acknowledged) - before
    ours.start()
    sender.send(ours.port, [file for file in files if file not in sender.acknowledged])
    return heard


def kept(ours: Receiver) -> list[Path]:
    return list((ours.folder / "spool").glob("[0-9a-f][0-9a-f]/*.dcm"))


def lost(ours: Receiver, sender: Sender) -> int:
    """Acknowledged instances whose pixels are not there, bit for bit."""
    there = {dcmread(file).PixelData for file in kept(ours)}
    return sum(dcmread(file).PixelData not in there for file in sender.acknowledged)


def measure(folder: Path, instances: int, side: int, associations: int) -> dict[str, object]:
    (folder / "sent").mkdir()
    (folder / "disk").mkdir()
    files = written(folder / "sent", instances, side)
    sender, other = Sender(associations), Sender(associations)
    ours, theirs = Receiver("ours", folder / "ours"), Receiver("theirs", folder / "theirs")
    rates: dict[str, list[float]] = {"ours": [], "storescp": [], "disk": []}
    heard = 0
    try:
        for number, chunk in enumerate(parted(files, CHUNKS)):
            if number == CHUNKS // 2:
                heard = killed_in_the_middle(ours, sender, chunk)
                continue
            rates["ours"].append(len(chunk) / sender.send(ours.port, chunk))
            rates["storescp"].append(len(chunk) / other.send(theirs.port, chunk))
            rates["disk"].append(len(chunk) / at_the_disks_pace(chunk, folder / "disk", associations))
    finally:
        ours.end()
        theirs.end()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "instances": instances,
        "bytes_each": files[0].stat().st_size,
        "associations": associations,
        "per_second": {name: round(value, 1) for name, value in medians.items()},
        "ratio_to_disk": round(medians["ours"] / medians["disk"], 2),
        "ratio_to_storescp": round(medians["ours"] / medians["storescp"], 2),
        "acknowledged": len(sender.acknowledged),
        "acknowledged_in_the_killed_chunk": heard,
        "kept": len(kept(ours)),
        "lost": lost(ours, sender),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=64, help="rows and columns of an instance")
    parser.add_argument("--associations", type=int, default=1, help="sent over so many at the same time")
    parser.add_argument("--on", type=Path, default=Path.cwd(), help="a folder on the disk to measure")
    given = parser.parse_args()
    if not shutil.which("storescp"):
        sys.exit("error: storescp - not installed - apt-get install dcmtk")
    with tempfile.TemporaryDirectory(dir=given.on) as folder:
        print(json.dumps(measure(Path(folder), given.instances, given.side, given.associations), indent=2))


if __name__ == "__main__":
    main()
