"""What a person sees: one JSON object on stdout, notes on stderr, one line and exit code 4 for a fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from usfmae.core.cli import group

QUICK = ("--set", "bench.image_size=32", "--set", "bench.resamples=100", "--set", "bench.repeats=1")


def run(*arguments: str) -> tuple[str, str]:
    done = CliRunner().invoke(group, list(arguments), catch_exceptions=False)
    return done.stdout, done.stderr


def test_datasets_list_counts_the_papers_images() -> None:
    out, told = run("datasets", "list")
    assert len(out.splitlines()) == 46 and "374,192 images" in told
    assert json.loads(run("datasets", "list", "--corpus", "readme43", "--json")[0])["images"] == 370_334


def test_datasets_check_reports_present_partial_and_foreign(tmp_path: Path) -> None:
    (tmp_path / "stu_hospital" / "Hospital").mkdir(parents=True)
    (tmp_path / "stu_hospital" / "Hospital" / "Test_Image_1.png").touch()
    (tmp_path / "holiday").mkdir()
    report = json.loads(run("datasets", "check", "--root", str(tmp_path), "--json")[0])
    assert report["counts"] == {"missing": 45, "partial": 1} and report["not_openus46"] == ["holiday"]
    (found,) = [d for d in report["datasets"] if d["status"] == "partial"]
    assert (found["id"], found["scans"], found["expected"], found["table1"]) == ("stu_hospital", 1, 42, 42)


def test_probe_prints_one_object_and_saves_every_probability(bus_bra: Path, checkpoint: Path, tmp_path: Path) -> None:
    out, told = run(
        *("probe", "--task", "bus-bra", "--data", str(bus_bra), "--model", str(checkpoint), "--baseline", "pixels"),
        *("--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out"), "--json", *QUICK),
    )
    report = json.loads(out)
    assert [m["model"] for m in report["models"]] == [str(checkpoint), "pixels"]
    assert report["task"]["complete"] is False and "partial copy" in told
    assert {t["head"] for t in report["paired"]} == {"logistic", "knn"}
    assert len(report["models"][1]["label_efficiency"]) == 5
    assert (tmp_path / "out" / "pixels.logistic.csv").read_text().count("\n") == 61
    page = (tmp_path / "out" / "report.html").read_text()
    score = report["models"][1]["scores"]["logistic"]["all"]["balanced_accuracy"]
    assert f"{100 * score['value']:.1f}<small>{100 * score['low']:.1f}–{100 * score['high']:.1f}</small>" in page
    assert str(checkpoint.parent) not in page and "may be scored here" in page and page.count("<caption>") == 4


def test_finetune_saves_a_report(bus_bra: Path, checkpoint: Path, tmp_path: Path) -> None:
    one = ("lrs=[0.001]", "weight_decays=[0.01]", "batch_sizes=[32]", "seeds=[0]", "epochs=1")
    out, _ = run(
        *("finetune", "--task", "bus-bra", "--data", str(bus_bra), "--model", str(checkpoint), "--split", "fold-1"),
        *("--out", str(tmp_path / "out"), "--json", *QUICK),
        *(x for key in one for x in ("--set", f"bench.finetune.{key}")),
    )
    report = json.loads(out)
    assert report["scores"]["all"]["examples"] == 12 and len(report["runs"]) == 1
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Fine-tuning on bus-bra" in page and "<td>fold-1</td>" in page


@pytest.mark.parametrize("fault", ["model", "data"])
def test_a_fault_is_one_line_and_exit_code_4(fault: str, bus_bra: Path, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere.safetensors")
    model, data = (nowhere, str(bus_bra)) if fault == "model" else ("pixels", str(tmp_path / "nowhere"))
    code = "from usfmae.core.cli import main; main()"
    arguments = ["probe", "--task", "bus-bra", "--data", data, "--model", model]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}
    )
    assert done.returncode == 4 and not done.stdout
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note:")]
    assert len(lines) == 1 and "nowhere" in lines[0]
