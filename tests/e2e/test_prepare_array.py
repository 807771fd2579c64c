"""The Slurm job array, with `srun` played by a shell script: its jobs together make the whole corpus."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm" / "prepare.sbatch"


def test_the_jobs_of_an_array_make_one_corpus(tmp_path: Path, wheel_dicoms: list[Path]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in wheel_dicoms:
        shutil.copy(path, source)
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text('#!/bin/bash\nexec "$@"\n')
    srun.chmod(0o755)
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 32)
    secret.chmod(0o600)
    search = f"{srun.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    common = {**os.environ, "PATH": search, "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "2"}
    jobs = [
        subprocess.Popen(
            ["bash", SCRIPT, source, tmp_path / "corpus", secret, "--set", "read.shard_images=1"],
            env={**common, "SLURM_ARRAY_TASK_ID": str(number)},
            stdout=subprocess.PIPE,
        )
        for number in (1, 2)
    ]
    assert [job.wait(timeout=300) for job in jobs] == [0, 0]
    whole = subprocess.run(
        ["usfmae", "prepare", source, "--corpus", tmp_path / "corpus", "--secret", secret, "--json", "--set",
         "read.shard_images=1"],
        env=common, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    counts = json.loads(whole.stdout)
    assert counts["scans"] == 3
    assert counts["frames"] == 5
    assert counts["images_per_second"] == 0  # nothing was left to read
