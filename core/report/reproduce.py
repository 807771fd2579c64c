"""The reproduction's report: the paper's Table 2 beside what was measured here, and what compares with what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from usfmae.core.bench.paper import table_2
from usfmae.core.journal import read as read_log
from usfmae.core.report.chart import line_chart
from usfmae.core.report.page import write_page

NAMES = {"bus-bra": "BUS-BRA", "mmotu-2d": "MMOTU-2D", "gist514": "GIST514-DB"}


def write_report(path: Path, result: dict[str, Any]) -> None:
    """`report.html`, self-contained."""
    write_page(
        path,
        "reproduce.html",
        result=result,
        tasks=[_task(name, result) for name in result["tasks"]],
        loss_chart=_losses(result["pretrain"]),
        hours=sum(result["seconds"].values()) / 3600,
    )


def rows(name: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Published and measured rows of one task; scores in per cent."""
    listed = [
        {
            "model": p.model,
            "how": f"published ({p.basis})",
            "paper": _alone(p.paper_f1),
            "ultrasam": _alone(p.ultrasam_f1),
        }
        for p in table_2()
        if p.task == name
    ]
    for how, found in (("frozen, logistic", result["probes"]), ("fine-tuned", result["finetune"])):
        for key, report in found.items():
            task, _, model = key.partition(" ")
            if task != name:
                continue
            scores = report["scores"].get("logistic", report["scores"])
            for part, values in scores.items():
                listed.append(
                    {"model": model, "how": f"{how}, {_part(part, result['tasks'][name])}", **_measured(values)}
                )
    return listed


def _part(part: str, task: dict[str, Any]) -> str:
    return ", ".join(task["headline"]) if part == "headline" else f"all {len(task['splits'])} test part(s)"


def _alone(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _measured(scores: dict[str, Any]) -> dict[str, str]:
    def shown(measure: str) -> str:
        value = scores[measure]
        return f"{100 * value['value']:.1f} ({100 * value['low']:.1f}–{100 * value['high']:.1f})"

    return {
        "paper": shown("paper.f1"),
        "ultrasam": shown("ultrasam.f1"),
        "balanced": shown("balanced_accuracy"),
        "auroc": shown("auroc"),
        "calibration": f"{100 * scores['expected_calibration_error']:.1f}",
    }


def _task(name: str, result: dict[str, Any]) -> dict[str, Any]:
    task = result["tasks"][name]
    curves = {
        key.partition(" ")[2]: r["label_efficiency"]
        for key, r in result["probes"].items()
        if key.startswith(f"{name} ")
    }
    fractions = [f"{100 * p['fraction']:g} %" for p in next(iter(curves.values()), [])]
    lines = {model: [100 * p["balanced_accuracy"] for p in points] for model, points in curves.items()}
    return {
        **task,
        "title": NAMES[name],
        "rows": rows(name, result),
        "curve": line_chart(lines, fractions, "balanced accuracy, %", "labelled training patients"),
        "tests": [t for t in result["paired"] if t["task"] == name and t["head"] == "logistic"],
        "confusions": [
            (key.partition(" ")[2], report["scores"]["logistic"]["all"]["confusion"])
            for key, report in result["probes"].items()
            if key.startswith(f"{name} ")
        ],
    }


def _losses(pretrain: dict[str, Any]) -> str:
    steps = [line for line in read_log(Path(pretrain["log"])) if "loss" in line]
    every = max(1, len(steps) // 60)
    chosen = steps[::every]
    return line_chart(
        {"training": [s["loss"] for s in chosen]}, [str(s["step"]) for s in chosen], "masked loss", "step"
    )
