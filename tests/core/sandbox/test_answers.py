"""A decoding process that was taken over may answer anything: nothing of it reaches the ledger, the rest goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from usfmae.core.config import Settings
from usfmae.core.read.discover import Candidate
from usfmae.core.sandbox import records, worker
from usfmae.core.sandbox.ipc import LENGTHS, Inbox
from usfmae.core.sandbox.records import ANSWERS, ScanResult, Unit
from usfmae.core.sandbox.worker import Worker
from usfmae.core.types import Scan, Trail

CHILD = """
import json, sys
from usfmae.core.sandbox import child, ipc

def forged(request, settings, answer):
    for header, size in json.loads({forgery!r}):
        text = header if isinstance(header, str) else json.dumps(header)
        ipc.send(answer.__self__.answers, text.encode(), bytes(size))

if {forgery!r}:
    child.DO[child.records.CleanUnit] = forged
    child.DO[child.records.Identify] = forged
child.main()
"""
IMAGE = {"event": "kept", "scan": 0, "index": 0, "shape": [32, 32], "brightness": 1.0, "region": 1.0, "changed": 0.0}
END = {
    "event": "scan-ended", "scan": 0, "outcome": "read", "reason": "", "frames": 1, "duplicates": 0, "notes": [],
}  # fmt: skip
DONE = ({"event": "done"}, 0)
FORGERIES: dict[str, list[tuple[Any, int]]] = {
    "frames as text": [({**END, "frames": "1"}, 0), DONE],
    "a name in the notes": [(IMAGE, 1024), ({**END, "notes": ["PATIENT^NAME 1961"]}, 0), DONE],
    "a name in a reason": [({"event": "kept-back", "scan": 0, "index": 0, "reason": "Jane Doe"}, 0), (END, 0), DONE],
    "another outcome": [(IMAGE, 1024), ({**END, "outcome": "released"}, 0), DONE],
    "a scan of nobody": [({**IMAGE, "scan": 7}, 1024), (END, 0), DONE],
    "an image of another size": [({**IMAGE, "shape": [16, 64]}, 1024), (END, 0), DONE],
    "too few pixels": [(IMAGE, 100), (END, 0), DONE],
    "a frame twice": [(IMAGE, 1024), (IMAGE, 1024), ({**END, "frames": 2}, 0), DONE],
    "a frame in no count": [(IMAGE, 1024), ({**END, "frames": 2}, 0), DONE],
    "no end": [(IMAGE, 1024), DONE],
    "after the end": [(IMAGE, 1024), (END, 0), ({**IMAGE, "index": 1}, 1024), DONE],
    "nan": [('{"event":"kept","scan":0,"index":0,"shape":[32,32],"brightness":NaN,"region":1,"changed":0}', 1024)],
    "nested deep": [("[" * 100_000, 0)],
    "no json": [("\\x00\\xff", 0)],
    "another event": [({"event": "shell"}, 0)],
    "a file that was not handed over": [({"event": "open", "scan": 3, "data_file": ""}, 0)],
}


def taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgery: list[tuple[Any, int]]) -> Worker:
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(forgery=json.dumps(forgery)))
    monkeypatch.setattr(worker, "COMMAND", (sys.executable, str(script)))
    return Worker(Settings.model_validate({"model": {"image_size": 32}}), b"k" * 32)


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "a.png")
    return Unit((Scan(tmp_path / "a.png", "raster", Trail("a" * 64)),))


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_false_answer_is_the_scans_and_goes_to_quarantine(
    forgery: str, tmp_path: Path, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = taken_over(tmp_path, monkeypatch, FORGERIES[forgery])
    try:
        results, images = one.process_unit(unit)
    finally:
        one.close()
    assert results == [ScanResult("a" * 64, "quarantined", "bad-answer")] and not images


def test_a_true_answer_is_taken(tmp_path: Path, unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    one = taken_over(tmp_path, monkeypatch, [(IMAGE, 1024), (END, 0), DONE])
    try:
        ((result,), (image,)) = one.process_unit(unit)
    finally:
        one.close()
    assert (result.frames, result.kept, result.outcome) == (1, 1, "read") and image.pixels.shape == (32, 32)


def test_a_false_identity_is_quarantined_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    examined = {"outcome": "scan", "digest": "00", "kind": "shell", "frames": -1}
    one = taken_over(tmp_path, monkeypatch, [({"event": "identity", "examined": examined}, 0), DONE])
    try:
        answer = one.identify(Candidate.of(tmp_path / "a.png"))
    finally:
        one.close()
    assert (answer["outcome"], answer["reason"]) == ("quarantined", "bad-answer")


def test_a_length_beyond_all_bounds_is_no_message() -> None:
    inbox = Inbox()
    inbox.add(LENGTHS.pack(1, 1 << 31))
    with pytest.raises(ValueError, match="too large"):
        inbox.next()


@pytest.mark.parametrize("frames", [0, 3])
def test_books_balance(frames: int) -> None:
    result = ScanResult("a", frames=frames, kept=1, duplicates=1, quarantined={"text-left": [4]})
    assert result.balanced == (frames == 3)


def test_records_come_back_as_they_went() -> None:
    for record in (records.Ready(7), records.Kept(0, 3, (32, 32, 3), 1.5, 0.5, 0.25), records.Fault("a", "b", "c")):
        assert records.decode(ANSWERS, records.encode(ANSWERS, record)) == record


Frames = Callable[..., Any]


@pytest.mark.parametrize("where", ["seen", "square", "read", "clean"])
def test_an_unforeseen_error_anywhere_leaves_no_frame_in_no_count(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "child.py"
    script.write_text(BROKEN.format(where=where))
    monkeypatch.setattr(worker, "COMMAND", (sys.executable, str(script)))
    pages = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (40, 40), np.uint8)) for n in range(6)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    one = Worker(Settings.model_validate({"model": {"image_size": 32}}), b"k" * 32)
    try:
        ((result,), images) = one.process_unit(Unit((Scan(tmp_path / "a.tif", "raster", Trail("a" * 64)),), clip=True))
    finally:
        one.close()
    assert result.balanced and len(images) == result.kept
    assert (result.frames, result.kept, result.reason) == BALANCE[where]
    assert "ArithmeticError at core/sandbox/clean_unit.py:" in caplog.text, "the cause is not said"
    assert "Doe" not in caplog.text and "a.tif" not in caplog.text


BALANCE = {"seen": (6, 5, ""), "square": (6, 5, ""), "read": (2, 2, "reading-failed"), "clean": (6, 0, "")}
BROKEN = """
import numpy as np
from usfmae.core import clean
from usfmae.core.corpus import shard
from usfmae.core.sandbox import child, clean_unit
from usfmae.core.types import CleanImage

where, calls = {where!r}, []

def broken(name, function, number):
    def wrapped(*arguments, **more):
        calls.append(name)
        if where == name and calls.count(name) == number:
            raise ArithmeticError("of Jane Doe")
        return function(*arguments, **more)
    return wrapped

def clip(frames, settings, beat):
    for frame in list(frames):
        if where == "clean":
            raise ArithmeticError("of Jane Doe")
        yield CleanImage(frame.pixels, np.zeros(frame.pixels.shape[:2], bool), frame.trail)

def read(*arguments):
    for number, frame in enumerate(original(*arguments)):
        if where == "read" and number == 2:
            raise ArithmeticError("of Jane Doe")
        yield frame

original = clean_unit.read
clean_unit.read = read
clean.clean_clip = clip
shard.square = broken("square", shard.square, 3)
clean_unit.Seen.is_duplicate = broken("seen", clean_unit.Seen.is_duplicate, 3)
child.main()
"""
