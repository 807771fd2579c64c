"""`--engine ray` on a local cluster leaves the same bytes as `--engine local`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
pytest.importorskip("ray", reason="needs the extra usfmae[ray]")


def test_ray_and_local_make_the_same_corpus(tmp_path: Path, wheel_dicoms: list[Path]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in wheel_dicoms:
        shutil.copy(path, source)
    counts = {}
    for engine in ("ray", "local"):
        done = subprocess.run(
            [
                Path(sys.executable).parent / "usfmae", "prepare", source, "--corpus", tmp_path / engine, "--engine",
                engine, "--workers", "2", "--set", "read.shard_images=1", "--json",
            ],
            env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config")},
            capture_output=True,
            text=True,
            timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        counts[engine] = {k: v for k, v in json.loads(done.stdout).items() if k not in ("seconds", "images_per_second")}
    assert counts["ray"] == counts["local"]
    assert counts["ray"]["frames"] == 5
    left, right = (
        {p.relative_to(tmp_path / e): p.read_bytes() for p in (tmp_path / e).rglob("*") if p.is_file()}
        for e in ("ray", "local")
    )
    assert left == right
