"""Real processes: two share a batch through torchrun, and `kill -9` loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from usfmae.core.checkpoint import load
from usfmae.core.corpus.shard import PackedImage, write_shard

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SMALL = [
    "--preset=tiny",
    *("--set=model.image_size=32", "--set=model.patch_size=8", "--set=model.width=32", "--set=model.depth=2"),
    *("--set=model.heads=2", "--set=model.decoder_width=16", "--set=model.decoder_heads=2"),
    *("--set=train.batch_size=7", "--set=train.micro_batch=2", "--set=train.checkpoint_steps=3"),
]
MAIN = [sys.executable, "-c", "from usfmae.core.cli import main; main()"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (32, 32), np.uint8) for _ in range(40)]
    write_shard(tmp_path / "corpus", "a", [PackedImage(x, f"id{i}", f"g{i // 2}") for i, x in enumerate(images)])
    return tmp_path / "corpus"


def pretrain(*arguments: str | Path, launcher: list[str] = MAIN) -> subprocess.CompletedProcess[str]:
    command = [*launcher, "pretrain", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_two_processes_equal_one(corpus: Path, tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text("from usfmae.core.cli import main; main()")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    common = ("--corpus", corpus, *SMALL, "--steps=8", "--set=train.precision=fp32")
    one = pretrain(*common, "--out", tmp_path / "one")
    two = pretrain(*common, "--out", tmp_path / "two", launcher=torchrun)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    left, right = (load(tmp_path / run / "checkpoint.safetensors").tensors for run in ("one", "two"))
    for name, tensor in left.items():
        if "qkv.bias" in name:  # the key's third has no gradient but rounding, which AdamW makes large
            tensor, right[name] = torch.cat(tensor.chunk(3)[::2]), torch.cat(right[name].chunk(3)[::2])
        assert torch.allclose(tensor, right[name], atol=1e-4), name
    losses = [
        [e["loss"] for e in map(json.loads, (tmp_path / run / "log.jsonl").read_text().splitlines()) if "loss" in e]
        for run in ("one", "two")
    ]
    assert np.allclose(*losses, rtol=1e-5) and len(losses[0]) == 8


def test_kill_9_and_resume_give_the_bits_of_an_uninterrupted_run(corpus: Path, tmp_path: Path) -> None:
    # Small steps with a pause would need a hook; many steps and early kills land anywhere.
    common = ("--corpus", corpus, *SMALL, "--steps=60")
    straight = pretrain(*common, "--out", tmp_path / "straight")
    assert straight.returncode == 0, straight.stderr
    out = tmp_path / "cut"
    command = [*MAIN, "pretrain", *map(str, common), "--out", str(out)]
    kills = 0
    for attempt in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = 8 + 14 * attempt
        while process.poll() is None and steps_logged(out) < wanted:
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        command = [*MAIN, "pretrain", "--out", str(out), "--resume"]
    assert kills >= 2
    resumed = pretrain("--out", out, "--resume", "--json")
    assert resumed.returncode == 0, resumed.stderr
    wanted_id = load(tmp_path / "straight" / "checkpoint.safetensors").trail.id
    assert json.loads(resumed.stdout)["id"] == wanted_id


@pytest.mark.parametrize("file", ["step-000000006.safetensors", "step-000000006.optimizer.safetensors"])
def test_kill_9_while_a_checkpoint_is_written_leaves_the_one_before_and_no_rest(
    corpus: Path, tmp_path: Path, file: str
) -> None:
    common = ("--corpus", corpus, *SMALL, "--steps=12")
    assert pretrain(*common, "--out", tmp_path / "straight").returncode == 0
    dies = (
        "import os, signal\nfrom usfmae.core import checkpoint\nreal = checkpoint.save_file\n"
        f"def half(tensors, path, metadata):\n    real(tensors, path, metadata)\n    if {file!r} in path.name:\n"
        "        os.truncate(path, path.stat().st_size // 2)\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoint.save_file = half\nfrom usfmae.core.cli import main\nmain()\n"
    )
    out = tmp_path / "cut"
    assert pretrain(*common, "--out", out, launcher=[sys.executable, "-c", dies]).returncode == -signal.SIGKILL
    assert [path.name for path in (out / "state").glob(f".{file}.*.partial")]
    assert (out / "state" / "step-000000003.optimizer.safetensors").exists()
    resumed = pretrain("--out", out, "--resume", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["id"] == load(tmp_path / "straight" / "checkpoint.safetensors").trail.id
    assert not list((out / "state").glob(".*"))


def test_ctrl_c_saves_stops_and_resume_ends_the_run(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    common = [*MAIN, "pretrain", "--corpus", str(corpus), *SMALL, "--steps=90", "--set=train.checkpoint_steps=10000"]
    process = subprocess.Popen([*common, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and steps_logged(out) < 10:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in errors
    assert list((out / "state").glob("step-*.safetensors"))
    assert pretrain("--out", out, "--resume").returncode == 0
    assert load(out / "checkpoint.safetensors").metadata["step"] == "90"


def test_sigterm_within_a_long_step_ends_the_program_in_seconds(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    long = ["--steps=5", "--set=train.batch_size=6000", "--set=train.micro_batch=1"]
    process = subprocess.Popen(
        [*MAIN, "pretrain", "--corpus", str(corpus), *SMALL, *long, "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (out / "run.json").exists():
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in errors and time.monotonic() - began < 40


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from usfmae.core.checkpoint import load
from usfmae.core.cli import group
arguments = [*sys.argv[1:], "--device=cpu"]
group.main([*arguments, "--steps=1", "--out", "warm"], standalone_mode=False)  # every library is loaded
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
from usfmae.core.cli.shell import run
sys.argv[1:] = [*arguments, "--steps=2", "--out", "run", "--set=train.batch_size=4096", "--set=train.micro_batch=4096"]
run(group, "a test")
"""


def test_memory_that_is_really_full_is_one_line_that_says_which_batch_to_try(corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OUT_OF_MEMORY, "pretrain", "--corpus", str(corpus), *SMALL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 7, done.stderr
    assert "with 4096 images at a time - is full - try --set train.micro_batch=2048" in done.stderr
    assert "Traceback" not in done.stderr


def steps_logged(out: Path) -> int:
    log = out / "log.jsonl"
    return log.read_text().count("grad_norm") if log.exists() else 0


def test_a_signal_to_one_process_stops_all_of_them_after_the_same_step(corpus: Path, tmp_path: Path) -> None:
    script, out = tmp_path / "main.py", tmp_path / "run"
    script.write_text(
        "import os, signal, usfmae.core.mae.train as t\n"
        "note = t.Journal.write\n"
        "def write(self, record):\n"
        "    note(self, record)\n"
        "    if os.environ['RANK'] == '1' and record.step == 6:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "t.Journal.write = write\n"
        "from usfmae.core.cli import main; main()"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    done = pretrain("--corpus", corpus, *SMALL, "--steps=20", "--out", out, launcher=torchrun)
    assert done.returncode != 0 and "--resume" in done.stderr
    assert (out / "state" / "step-000000006.safetensors").exists()
