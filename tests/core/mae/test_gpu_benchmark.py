"""`benchmarks/gpu.py` runs where a GPU is lent for minutes: a bare image, none of the hospital's packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ABSENT = ("openvino", "flwr", "tesserocr", "pydicom", "gdcm", "SimpleITK", "rapidocr", "cryptography",
          "pynetdicom", "starlette", "uvicorn", "httpx")  # fmt: skip
BLOCKED = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Blocked())
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code, *arguments], capture_output=True, text=True, env=environment, timeout=400
    )


def test_training_needs_no_package_of_a_hospital() -> None:
    names = sorted(
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        for folder in ("core/mae", "core/corpus", "core/export")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    )
    lines = "".join(f"import usfmae.{name}\n" for name in names)
    done = run(lines + "import usfmae.core.cli.pretrain, gpu, gpu_programs\n")
    assert done.returncode == 0, done.stderr[-800:]


@pytest.mark.e2e
def test_every_phase_runs_dry_on_a_cpu_and_says_what_is_right(tmp_path: Path) -> None:
    done = run("import sys, gpu; sys.exit(gpu.main())", "--out", str(tmp_path), "--dry", "--json")
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 0 and json.loads(done.stdout) == results, (results, done.stderr[-800:])
    assert set(results) == {"machine", "correct", "speed", "fed", "killed", "learns"}
    assert results["correct"]["augmentation"]["ok"] and results["correct"]["curve"]["ok"]
    assert results["killed"]["same_bits"]
    assert all(isinstance(value, dict) for name, value in results["speed"].items()), results["speed"]
    assert results["learns"]["held_out_after"] < results["learns"]["held_out_before"]
