"""`usfmae reproduce`: from folders to report, step by step; faults are named before anything is trained."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from usfmae.core.bench.reproduce.paper import bus_bra_row, table_2
from usfmae.core.bench.reproduce.plan import CorpusChoice, Steps, make, steps_of
from usfmae.core.cli import group
from usfmae.core.config import Settings
from usfmae.core.errors import SourceError
from usfmae.core.mae.presets import configure

SMALL = (
    "clean.profile=paper",
    "model.image_size=32",
    "model.patch_size=8",
    "model.width=16",
    "model.depth=1",
    "model.heads=2",
    "model.decoder_width=16",
    "model.decoder_depth=1",
    "model.decoder_heads=2",
    "train.steps=4",
    "train.batch_size=4",
    "bench.image_size=32",
    "bench.resamples=100",
    "bench.repeats=1",
    "bench.regularisation=[1.0]",
    "bench.finetune.epochs=1",
    "bench.finetune.lrs=[0.001]",
    "bench.finetune.weight_decays=[0.01]",
    "bench.finetune.batch_sizes=[32]",
    "bench.finetune.seeds=[0]",
)


def settings() -> Settings:
    return configure("tiny", None, SMALL)


def speckle(seed: int) -> np.ndarray:
    smooth = cv2.GaussianBlur(np.random.default_rng(seed).random((96, 96)).astype(np.float32), (0, 0), 4)
    return cv2.normalize(smooth, None, 20, 200, cv2.NORM_MINMAX).astype(np.uint8)


def called(root: Path, out: Path, *more: str, small: tuple[str, ...] = SMALL) -> list[str]:
    """Arguments of a small `usfmae reproduce`."""
    settings = [x for s in small for x in ("--set", s)]
    return ["reproduce", "--root", str(root), "--out", str(out), "--preset", "tiny", "--workers", "1", *more, *settings]


@pytest.fixture
def root(tmp_path: Path, bus_bra: Path) -> Path:
    """BUS-BRA and ten images in STU-Hospital's layout."""
    folder = tmp_path / "root"
    (folder / "stu_hospital" / "Hospital").mkdir(parents=True)
    for n in range(10):
        cv2.imwrite(str(folder / "stu_hospital" / "Hospital" / f"Test_Image_{n}.png"), speckle(n))
    shutil.move(bus_bra, folder / "bus_bra")
    return folder


def test_recovered_counts_give_the_papers_rows() -> None:
    assert bus_bra_row("USF-MAE") == {"precision": 81.3, "recall": 82.0, "f1": 81.6, "macro_f1": 86.4}
    # A figure of one view is never set beside one of the other.
    assert all(p.paper_f1 is None for p in table_2() if p.model == "UltraSam")


def test_a_plan_names_what_is_missing(root: Path) -> None:
    plan = make(root, settings())
    assert set(plan.tasks) == {"bus-bra"} and [f.dataset.id for f in plan.usable] == ["stu_hospital"]
    names = {
        kind: " ".join(a.name for a in plan.absent if a.kind == kind) for kind in ("benchmark", "data set", "baseline")
    }
    assert "MMOTU-2D" in names["benchmark"] and "EchoNet-Dynamic" in names["data set"]
    assert "vit_base_patch16_224.mae" in names["baseline"]


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("half an archive", "hc18 is damaged"),
        ("other layout", "camus is mismatch"),
        ("benchmark image in the corpus", "bus_0001-l of bus-bra"),
        ("no corpus", "holds no data set of the corpus"),
        ("no benchmark", "none of the three"),
        ("label file", "bus_0002-l, which is absent"),
        ("unverified layout", "dfhi is unverified"),
    ],
)
def test_every_fault_ends_with_exit_code_4_before_training(root: Path, fault: str, named: str, tmp_path: Path) -> None:
    image = root / "bus_bra" / "Images" / "bus_0001-l.png"
    if fault == "half an archive":
        (root / "hc18.zip").write_bytes(b"PK\x03\x04 cut")
    elif fault == "other layout":
        (root / "camus").mkdir()
        (root / "camus" / "readme.txt").write_text("elsewhere")
    elif fault == "benchmark image in the corpus":
        shutil.copy(image, root / "stu_hospital" / "Hospital" / "Test_Image_99.png")
    elif fault == "no corpus":
        shutil.rmtree(root / "stu_hospital")
    elif fault == "no benchmark":
        shutil.rmtree(root / "bus_bra")
    elif fault == "label file":
        (root / "bus_bra" / "Images" / "bus_0002-l.png").unlink()
    else:
        (root / "dfhi").mkdir()
        shutil.copy(image, root / "dfhi" / "1.png")
    with pytest.raises(SourceError) as caught:
        make(root, settings())
    assert named in str(caught.value) and caught.value.exit_code == 4


def test_a_step_is_done_once_for_a_recipe_and_again_for_another(tmp_path: Path) -> None:
    done: list[str] = []
    steps = Steps(tmp_path, lambda *_: None)

    def work() -> dict[str, int]:
        done.append("x")
        return {"n": len(done)}

    assert [steps.do("a b/c", {"v": v}, work)["n"] for v in (1, 1, 2)] == [1, 1, 2]
    next(tmp_path.glob("*.json")).write_text("{cut")
    assert steps.do("a b/c", {"v": 2}, work)["n"] == 3


def test_a_limit_spreads_over_a_data_set_and_shrinks_the_plan(root: Path) -> None:
    plan = make(root, settings(), CorpusChoice(limit=3))
    (found,) = plan.usable
    assert [entry.name[-5] for entry in plan.scans_of(found)] == ["0", "4", "9"]
    assert (
        "about 3 images" in steps_of(plan)[0]["what"]
        and "about 10 images" in steps_of(make(root, settings()))[0]["what"]
    )


def test_dry_run_lists_every_step_with_hours_and_writes_nothing(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = called(root, out, "--dry-run", "--json", "--finetune")
    done = CliRunner().invoke(group, arguments, catch_exceptions=False)
    plan = json.loads(done.stdout)
    names = [step["step"] for step in plan["steps"]]
    assert names[:3] == ["corpus stu_hospital", "leaks", "pretrain"] and "finetune bus-bra pretrained" in names
    assert plan["hours"] > 0 and not out.exists()


@pytest.mark.slow
def test_from_folders_to_report_and_the_second_call_does_nothing(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = called(root, out, "--finetune")
    first = CliRunner().invoke(group, arguments, catch_exceptions=False)
    report = json.loads((out / "report.json").read_text())
    assert report["corpus"]["images"] == 10 and report["leaks"]["leaks"] == []
    assert "probe bus-bra pretrained: begins" in first.stderr
    page = (out / "report.html").read_text()
    assert "75 % masked, patches normalised" in page and "32 pixels in patches of 8" in page
    assert "81.6" in page and "UltraSam" in page and "partial copy of BUS-BRA" in page and "EchoNet-Dynamic" in page
    second = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert "begins" not in second.stderr and "pretrain: done before" in second.stderr
    assert json.loads((out / "report.json").read_text())["probes"] == report["probes"]


@pytest.mark.slow
def test_killed_in_the_middle_of_pretraining_it_goes_on_there(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = (*SMALL, "train.steps=300", "train.checkpoint_steps=10")
    code = "from usfmae.core.cli import main; main()"
    command = [sys.executable, "-c", code, *called(root, out, "--baseline", "pixels", small=options)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as cut:
        assert cut.stderr
        told = next(line for line in cut.stderr if line.startswith("pretrain: step"))
        cut.kill()
    assert "of 300" in told and not (out / "report.json").exists()
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True).stderr
    begun = [line.split(":")[0] for line in done.splitlines() if line.endswith(": begins")]
    assert begun == ["pretrain", "probe bus-bra pretrained", "probe bus-bra random", "probe bus-bra pixels"]
    (log,) = out.glob("pretrain-*/log.jsonl")
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if '"loss"' in line]
    assert steps == list(range(1, 301))  # none lost, none twice
    first = next(line for line in done.splitlines() if line.startswith("pretrain: step"))
    assert int(first.split()[2]) > int(told.split()[2]) - 10  # from the last checkpoint on


@pytest.mark.slow
def test_a_disguised_benchmark_image_stops_the_run_before_training(root: Path, tmp_path: Path) -> None:
    hidden = speckle(500)
    cv2.imwrite(str(root / "bus_bra" / "Images" / "bus_0001-l.png"), hidden)
    cv2.imwrite(str(root / "stu_hospital" / "Hospital" / "Test_Image_50.png"), np.ascontiguousarray(hidden[:, ::-1]))
    out = tmp_path / "out"
    arguments = called(root, out, "--baseline", "pixels")
    with pytest.raises(SourceError, match="bus_0001-l"):
        CliRunner().invoke(group, arguments, catch_exceptions=False, standalone_mode=False)
    assert not list(out.glob("pretrain-*"))
    told = CliRunner().invoke(group, [*arguments, "--set", "bench.leaks=drop"], catch_exceptions=False).stderr
    assert "660 pairs compared, 1 within 32 of 256 bits" in told and "bus_0001-l of bus-bra is position" in told
    report = json.loads((out / "report.json").read_text())
    assert [leak["image"] for leak in report["leaks"]["leaks"]] == ["bus_0001-l"]
    assert report["pretrain"]["finished"] and "corpus-without-leaks" in report["leaks"]["roots"][0]
