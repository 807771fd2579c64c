"""`prepare` with its real processes, in which one reader misbehaves on purpose and cleaning is quick."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from usfmae.core.config import Settings
from usfmae.core.prepare import Parallel, PrepareSummary, Sources, prepare

SECRET = b"s" * 32
PROCESS = """
import os, signal, sys, time
import numpy as np
from usfmae.core import clean
from usfmae.core.errors import ResourceError
from usfmae.core.types import CleanImage
from usfmae.core.sandbox import child
from usfmae.core.read import raster

def quick(frame, settings):
    if frame.pixels.shape[1] == 77:
        raise ResourceError("program 'tesseract'", "is not installed", "apt-get install tesseract-ocr")
    if frame.pixels.shape[1] == 66:
        raise ZeroDivisionError("a bug")
    return CleanImage(frame.pixels, np.zeros(frame.pixels.shape[:2], bool), frame.trail)

clean.clean = quick

def quick_clip(frames, settings, beat):
    frames = list(frames)
    width = frames[0].pixels.shape[1] if frames else 0
    if width == 88:
        time.sleep(600)
    if width == 96:
        for _ in range(8):
            time.sleep(0.75)
            beat()
    return (quick(frame, settings) for frame in frames)

clean.clean_clip = quick_clip
original = raster.frames

def frames(scan, settings, notes, failed=None):
    name = scan.path.name
    if name.startswith("hang"):
        time.sleep(600)
    if name.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("hog"):
        bytearray(8 << 30)
    if name.startswith("slow"):
        time.sleep(0.1)
    yield from original(scan, settings, notes, failed)

raster.frames = frames
child.main()
"""


def still(path: Path, seed: int, width: int = 50) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, width), dtype=np.uint8)).save(path, "PNG")
    return path


def clip(path: Path, count: int, seed: int = 0, width: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (width, 48))
    rng = np.random.default_rng(seed)
    for _ in range(count):
        writer.write(cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (width, 48)))
    writer.release()
    return path


def pixels(corpus: Path) -> np.ndarray:
    return np.concatenate([np.load(p) for p in sorted((corpus / "shards").glob("*.gray.npy"))])


@pytest.fixture
def quick_process(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path_factory.mktemp("process") / "child.py"
    script.write_text(PROCESS)
    monkeypatch.setattr("usfmae.core.sandbox.worker.COMMAND", (sys.executable, str(script)))


@pytest.fixture
def run(quick_process: None) -> Callable[..., PrepareSummary]:
    """`run(source, corpus, "read.fps=5", ...)`"""

    def go(source: Path, corpus: Path, workers: int = 1, **read: float) -> PrepareSummary:
        settings = Settings.model_validate({"read": read, "model": {"image_size": 32}})
        return prepare(Sources([source]), corpus, settings, SECRET, Parallel(workers))

    return go


@contextmanager
def read_only(folder: Path) -> Iterator[bool]:
    """`folder` mounted over itself without the right to write; yields False where this machine does not allow that."""
    done = subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False)
    if done.returncode:
        yield False
        return
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield True
    finally:
        subprocess.run(["umount", folder], check=True)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; of the ledger its rows, as it lies in pages whose order depends on the moment."""
    found = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {
        name: rows(path) if path.suffix == ".sqlite" else path.read_bytes()
        for name, path in found.items()
        if not path.name.endswith((".sqlite-wal", ".sqlite-shm"))
    }


def rows(database: Path) -> bytes:
    """A database as text."""
    with closing(sqlite3.connect(database)) as db:
        return "\n".join(db.iterdump()).encode()


def tables(corpus: Path, query: str) -> list[tuple[object, ...]]:
    """Rows of a corpus' ledger."""
    with closing(sqlite3.connect(corpus / "ledger" / "ledger.sqlite")) as db:
        return db.execute(query).fetchall()
