"""What a decoding process may not do, tried from inside one."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from usfmae.core.config import Settings
from usfmae.core.read.discover import Candidate
from usfmae.core.sandbox import confinement, worker
from usfmae.core.sandbox.worker import Worker

needs_landlock = pytest.mark.skipif(not confinement.landlock_version(), reason="this kernel has no Landlock")
INSIDE = """
import json, os, socket, subprocess, sys
from usfmae.core.sandbox.confinement import confine
secret, ends = sys.argv[1], {}
confine([sys.argv[2]] if len(sys.argv) > 2 else [])

def attempt(name, act):
    try:
        act()
        ends[name] = True
    except (OSError, subprocess.CalledProcessError):
        ends[name] = False

attempt("another file", lambda: open(secret).read())
attempt("its folder", lambda: os.listdir(os.path.dirname(secret)))
attempt("passwords", lambda: open("/etc/passwd").read())
attempt("another process", lambda: open("/proc/1/environ").read())
attempt("a new file", lambda: open(secret + ".new", "w"))
attempt("a connection", lambda: socket.socket())
attempt("a child that reads it", lambda: subprocess.run(["cat", secret], check=True, stderr=-3) and None)
attempt("the library", lambda: __import__("colorsys"))
attempt("scratch", lambda: open(sys.argv[2] + "/page", "w"))
print(json.dumps(ends))
"""


@needs_landlock
def test_a_confined_process_reads_its_libraries_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "scratch").mkdir()
    secret = tmp_path / "keys" / "signing.pem"
    secret.write_text("secret")
    command = [sys.executable, "-P", "-c", INSIDE, str(secret), str(tmp_path / "scratch")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.fail(error.stderr)
    ends = json.loads(done.stdout)
    allowed = {name for name, could in ends.items() if could}
    assert allowed == {"the library", "scratch"}


@needs_landlock
def test_the_decoding_process_is_confined_and_knows_no_secret_and_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USFMAE_PROXY_PASSWORD", "hunter2")
    (tmp_path / "a.txt").write_text("text")
    one = Worker(Settings(), b"k" * 32)
    try:
        assert one.identify(Candidate.of(tmp_path / "a.txt")) == {"outcome": "none"}
        assert one.process is not None
        environment = Path(f"/proc/{one.process.pid}/environ").read_bytes()
        assert b"hunter2" not in environment
        status = Path(f"/proc/{one.process.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    finally:
        one.close()


def test_a_kernel_without_landlock_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "child.py"
    script.write_text("from usfmae.core.sandbox import child\nchild.confine = lambda writable: 0\nchild.main()\n")
    monkeypatch.setattr(worker, "COMMAND", (sys.executable, str(script)))
    (tmp_path / "a.txt").write_text("text")
    one = Worker(Settings(), b"k" * 32)
    with caplog.at_level(logging.WARNING):
        one.identify(Candidate.of(tmp_path / "a.txt"))
    one.close()
    assert "no Landlock" in caplog.text
