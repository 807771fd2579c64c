"""kill -9 at any moment, run again: the same corpus byte for byte, no scan lost or counted twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import clip, content, still

DRIVER = """
import json, sys
from pathlib import Path
from usfmae.core.config import Settings
from usfmae.core.prepare import Parallel, Sources, prepare
from usfmae.core.sandbox import worker
worker.COMMAND = (sys.executable, sys.argv[3])
settings = Settings.model_validate({"read": {"shard_images": 6}, "model": {"image_size": 32}})
summary = prepare(Sources([Path(sys.argv[1])]), Path(sys.argv[2]), settings, b"s" * 32, Parallel(2))
print(json.dumps(summary.as_dict()))
"""


def start(tmp_path: Path, corpus: Path, process: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "source"), str(corpus), str(process)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def children_of(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


@pytest.mark.faults
def test_killed_again_and_again_the_corpus_is_the_same(tmp_path: Path, quick_process: None) -> None:
    from usfmae.core.sandbox import worker

    process = Path(worker.COMMAND[1])
    for number in range(24):
        still(tmp_path / "source" / f"slow{number:02d}.png", number)
    for number in range(3):
        clip(tmp_path / "source" / f"{number}.avi", 20, number)
    (tmp_path / "source" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    whole, _ = start(tmp_path, tmp_path / "whole", process).communicate(timeout=120)
    moments = random.Random(7)
    kills = 0
    while True:
        running = start(tmp_path, tmp_path / "killed", process)
        time.sleep(moments.uniform(0.3, 2.0) + 0.2 * kills)  # a busy machine gets further each time
        if running.poll() is not None:
            break
        workers = children_of(running.pid)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        kills += 1
        deadline = time.monotonic() + 10  # no decoding process outlives its supervisor
        while [w for w in workers if Path(f"/proc/{w}/exe").exists()] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [w for w in workers if Path(f"/proc/{w}/exe").exists()]
        assert kills < 60
    assert kills >= 3
    last = json.loads(running.stdout.read()) if running.stdout else {}
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    for timing in ("seconds", "images_per_second"):
        last.pop(timing)
    assert last == {k: v for k, v in json.loads(whole).items() if k in last}


@pytest.mark.faults
def test_control_c_stops_soon_and_leaves_no_process(tmp_path: Path, quick_process: None) -> None:
    from usfmae.core.sandbox import worker

    for number in range(400):
        still(tmp_path / "source" / f"slow{number:03d}.png", number)
    running = start(tmp_path, tmp_path / "corpus", Path(worker.COMMAND[1]))
    deadline = time.monotonic() + 60
    while not (tmp_path / "corpus" / "shards").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = children_of(running.pid)
    assert workers
    running.send_signal(signal.SIGINT)
    running.wait(timeout=15)
    assert running.returncode != 0
    assert not [w for w in workers if Path(f"/proc/{w}/exe").exists()]
