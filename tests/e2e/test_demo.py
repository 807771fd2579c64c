"""The demo as a newcomer runs it: real processes, real TLS, a checked export; and nothing left when it is cut."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
USFMAE = [sys.executable, "-c", "from usfmae.core.cli import main; main()"]


def _processes(mark: str) -> list[str]:
    """Command lines of living processes that name `mark`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if mark in line:
                found.append(line)
    return found


def _demo(out: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*USFMAE, "demo", "--out", str(out), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )


def test_two_hospitals_learn_together_and_leave_nothing_running(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    demo = _demo(out, "--json")
    said, errors = demo.communicate(timeout=900)
    assert demo.returncode == 0, errors
    summary = json.loads(said)
    assert summary == json.loads((out / "summary.json").read_text())
    for name in summary["sites"]:
        assert summary["final_loss"][name] < summary["seed_loss"][name]
        assert summary["images"][name] > 20
        assert len(summary["update_bytes"][name]) == summary["rounds"]
    assert summary["timm_max_abs_diff"] < 1e-4
    assert len(list((out / "coordinator" / "checkpoints").glob("round-*.safetensors"))) >= summary["rounds"]
    page = (out / "report.html").read_text()
    assert page.count("<img") >= 20 and "<script" not in page and "http://" not in page
    assert not _processes(str(out))


def test_ctrl_c_ends_every_process(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    demo = _demo(out, "--seed-steps", "2", "--rounds", "40")
    end = time.monotonic() + 600
    while not list(out.glob("sites/*/jobs/*/progress.json")):  # both sites are in the middle of a round
        assert demo.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    demo.send_signal(signal.SIGINT)
    _, errors = demo.communicate(timeout=90)
    assert demo.returncode == 130 and "Traceback" not in errors
    assert not _processes(str(out))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--data", "/nonexistent-a", "/nonexistent-b"], 4, "/nonexistent-a"),
        (["somewhere"], 2, "--data"),
    ],
)
def test_bad_requests_are_one_clear_line(tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    demo = _demo(tmp_path / "demo", *arguments)
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == code
    assert says in errors and "Traceback" not in errors


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    demo = _demo(tmp_path)
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 2 and "no demo made" in errors
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_folder_without_scans_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.dcm").write_text("not a scan")
    demo = _demo(tmp_path / "demo", "--seed-steps", "1", "--data", str(tmp_path / "a"), str(tmp_path / "b"))
    _, errors = demo.communicate(timeout=200)
    assert demo.returncode == 4, errors
    assert "Traceback" not in errors and not _processes(str(tmp_path / "demo"))


def test_many_virtual_hospitals_go_through_the_same_gate_and_ledger(tmp_path):
    """`usfmae demo --simulate N`: every hospital is judged in every round, and what is committed can be verified."""
    out = tmp_path / "demo"
    demo = _demo(out, "--simulate", "5", "--rounds", "2", "--steps", "1", "--json")
    printed, said = demo.communicate(timeout=300)
    assert demo.returncode == 0, said
    summary = json.loads(printed)
    assert summary == json.loads((out / "summary.json").read_text())
    assert [r["state"] for r in summary["rounds"]] == ["committed"] * 2
    assert all(v["verdict"] == "admitted" for r in summary["rounds"] for v in r["verdicts"])
    assert [len(r["verdicts"]) for r in summary["rounds"]] == [5, 5] and len(said.splitlines()) >= 3
    verify = "import sys; sys.argv[0] = 'usfmae-server'; from usfmae.server.cli import main; main()"
    assert subprocess.run([sys.executable, "-c", verify, "verify", str(out / "coordinator")]).returncode == 0
