"""docs/first-round.md, typed as it stands there: a new administrator gets from nothing to two committed rounds."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.ports import free_port

from .conftest import end

pytestmark = pytest.mark.system

PAGE = Path(__file__).parents[2] / "docs" / "first-round.md"


def commands(ports: dict[str, int]) -> list[list[str]]:
    """The page's command lines, with ports that are free here."""
    text = "\n".join(re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL))
    lines = [line[2:] for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.startswith("$ ")]
    for written, free in ports.items():
        lines = [re.sub(rf"\b{written}\b", str(free), line) for line in lines]
    return [shlex.split(line) for line in lines]


def page(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, OSError):
        return ""


def test_typed_as_it_stands(tmp_path: Path) -> None:
    ports = {"8443": free_port(), "8080": free_port(), "8081": free_port()}
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def do(words: list[str]) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
        return done.stdout

    every = commands(ports)
    run = [words for words in every if words[1] == "run"]
    first, after = every[: every.index(run[0])], every[every.index(run[-1]) + 1 :]
    said = "".join(do(words) for words in first)
    fingerprints = re.findall(r"fingerprint ((?:\w{4} ?){4})", said)
    assert len(fingerprints) == 3 and fingerprints[0] == fingerprints[2], "the coordinator's is shown on both sides"
    logs = [(tmp_path / f"{words[0]}.log").open("wb") for words in run]
    running = [
        subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        for words, log in zip(run, logs, strict=True)
    ]
    try:
        deadline = time.monotonic() + 600
        seen = ["", ""]
        while any(p.poll() is None for p in running) and time.monotonic() < deadline:
            for i, port in enumerate((ports["8080"], ports["8081"])):
                seen[i] = page(port) or seen[i]
            time.sleep(0.5)
        for words, process in zip(run, running, strict=True):
            assert process.poll() == 0, (tmp_path / f"{words[0]}.log").read_text()[-3000:]
    finally:
        for process in running:
            if process.poll() is None:
                end(process)
        for log in logs:
            log.close()
    assert "trial" in seen[0] and "my-site" in seen[0] and "This page shows scans" in seen[1]
    for words in after:
        do(words)
    status = json.loads(do(["usfmae-server", "status", "coordinator", "--json"]))
    assert status["round"] == 2
    report = do(["usfmae-client", "report", "site"]).strip()
    assert "updates left" in (tmp_path / report).read_text()
    assert "my-site" in (tmp_path / do(["usfmae-server", "report", "coordinator"]).strip()).read_text()
