"""docs/extending.md keeps its word: each example is put in its place, listed with one line, and used."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from usfmae.core.config import CleanSettings, ModelSettings, ReadSettings, TrainRecipe

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# ([\w/]+\.py)\n(.*?)```", PAGE, re.DOTALL))
MODEL = ModelSettings(
    image_size=32, patch_size=8, width=32, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
)


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Any]:
    """`example(path)`: the page's file at `path` as a module of its package, gone again afterwards."""
    undo: list[tuple[ModuleType, str, str]] = []

    def place(path: str) -> ModuleType:
        package_name = "usfmae." + path.rpartition("/")[0].replace("/", ".")
        package, folder = importlib.import_module(package_name), tmp_path / "examples" / path.rpartition("/")[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / Path(path).name).write_text(EXAMPLES[path])
        package.__path__.append(str(folder))
        undo.append((package, str(folder), f"{package_name}.{Path(path).stem}"))
        return importlib.import_module(undo[-1][2])

    yield place
    for package, folder, module in undo:
        package.__path__.remove(folder)
        sys.modules.pop(module, None)
        vars(package).pop(module.rpartition(".")[2], None)


def test_a_merging_rule(example: Any) -> None:
    from usfmae.core.config.coordinator import MergeSettings

    rule = example("core/federated/rules/bounded.py").Rule(MergeSettings())
    base, trained = np.zeros(4), np.array([[1.0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 900]])
    merged = rule.merge(base, trained, np.full(3, 1 / 3), {})
    assert np.allclose(merged, [1, 1, 1, 4 / 3])
    assert not rule.from_mean  # the page says that such a rule cannot be sealed


def test_a_format(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from usfmae.core.read import identify, walk
    from usfmae.core.read.reader import READERS, read
    from usfmae.core.types import Scan

    example("core/read/pgm.py")
    listed = (*READERS, "pgm")
    monkeypatch.setattr("usfmae.core.read.reader.READERS", listed)
    discovery = sys.modules["usfmae.core.read.discover"]
    if hasattr(discovery, "READERS"):
        monkeypatch.setattr(discovery, "READERS", listed)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.pgm").write_bytes(b"P5\n64 48\n255\n" + pixels.tobytes())
    (tmp_path / "scans" / "b.pgm").write_bytes(b"P5\n64 48\n255\n" + pixels.tobytes()[:100])
    found = [identify(c, b"s" * 32, ReadSettings()) for c in walk([tmp_path / "scans"])]
    scans = [one.scan for one in found if hasattr(one, "scan")]
    assert [scan.kind for scan in scans] == ["pgm", "pgm"] and all(isinstance(scan, Scan) for scan in scans)
    (frame,) = read(scans[0], ReadSettings())
    assert np.array_equal(frame.pixels[..., 1], pixels)
    with pytest.raises(Exception, match="ends before"):
        list(read(scans[1], ReadSettings()))


def test_a_cleaning_step(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from usfmae.core.clean import safe

    step = example("core/clean/guide.py").find
    monkeypatch.setattr(safe, "STEPS", (*safe.STEPS, step))
    pixels = np.random.default_rng(0).integers(20, 60, (120, 160, 1), np.uint8).repeat(3, axis=2)
    pixels[60, 30:130] = (0, 255, 0)
    crop, _ = safe.crop_of(pixels, np.ones(pixels.shape[:2], bool))
    assert step(crop, CleanSettings()).mask[60, 30:130].all()
    finding, _ = safe.seen_in(crop, CleanSettings())
    assert finding.mask[60, 30:130].mean() > 0.9


def test_a_benchmark(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    from usfmae.core.bench import tasks

    example("core/bench/tasks/left_right.py")
    monkeypatch.setitem(tasks.BENCHMARKS, "left-right", tasks.Benchmark("usfmae.core.bench.tasks.left_right"))
    for patient in range(30):
        for side in ("left", "right"):
            pixels = np.random.default_rng(patient).integers(0, 256, (40, 40), np.uint8)
            (tmp_path / "data").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "data" / f"p{patient}_{side}.png")
    task = tasks.load("left-right", tmp_path / "data")
    assert task.classes == ("left", "right") and len(task.examples) == 60 and len(task.splits) == 5


def test_an_export_target(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from usfmae.core import export
    from usfmae.core.checkpoint import Loaded
    from usfmae.core.mae.model import fresh
    from usfmae.core.types import Trail

    example("core/export/numpy.py")
    monkeypatch.setitem(export.TARGETS, "numpy", ("usfmae.core.export.numpy", "numpy"))
    loaded = Loaded(fresh(MODEL).state_dict(), MODEL, TrainRecipe(), {}, Trail("f" * 64))
    done = export.export(loaded, "numpy", tmp_path)
    assert done.difference == 0 and (tmp_path / "encoder.npz").exists()


def test_a_target_and_a_benchmark_that_are_listed_can_be_chosen_on_the_command_line() -> None:
    from usfmae.core.bench.tasks import BENCHMARKS
    from usfmae.core.cli.checkpoints import export
    from usfmae.core.cli.finetune import finetune
    from usfmae.core.cli.probe import probe
    from usfmae.core.export import TARGETS

    for command, option, table in (
        (export, "target", TARGETS),
        (probe, "task", BENCHMARKS),
        (finetune, "task", BENCHMARKS),
    ):
        (found,) = [p for p in command.params if p.name == option]
        assert isinstance(found.type, click.Choice) and list(found.type.choices) == list(table)


def test_a_command(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from usfmae.core import cli
    from usfmae.core.corpus.shard import PackedImage, write_shard

    example("core/cli/count.py")
    monkeypatch.setitem(cli.COMMANDS, "count", "usfmae.core.cli.count:count")
    images = [PackedImage(np.full((16, 16), n, np.uint8), f"{n}", f"{n}") for n in range(3)]
    write_shard(tmp_path / "corpus", "all", images)
    done = CliRunner().invoke(cli.group, ["count", str(tmp_path / "corpus")])
    assert done.output.strip() == "3" and done.exit_code == 0


@pytest.mark.parametrize("path", EXAMPLES)
def test_an_example_passes_the_linter_as_it_stands(path: str) -> None:
    root = Path(__file__).parents[1]
    for words in (["check", "--quiet"], ["format", "--diff", "--quiet"]):
        command = [sys.executable, "-m", "ruff", *words, "--stdin-filename", str(root / path), "-"]
        done = subprocess.run(command, input=EXAMPLES[path], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_example_of_the_page_is_tried() -> None:
    source = Path(__file__).read_text()
    assert EXAMPLES and all(f'example("{path}")' in source for path in EXAMPLES)
