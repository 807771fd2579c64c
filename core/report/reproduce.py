"""The reproduction's report: the paper's Table 2 beside what was measured here, and what compares with what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from usfmae.core.bench.reproduce.paper import SHOWN, Published, shown, table_2
from usfmae.core.mae.train_log import read as read_log
from usfmae.core.report.page import write_page
from usfmae.core.web.chart import REPORT, line_chart

NAMES = {"bus-bra": "BUS-BRA", "mmotu-2d": "MMOTU-2D", "gist514": "GIST514-DB"}


def write_report(path: Path, result: dict[str, Any]) -> None:
    """`report.html`, self-contained."""
    write_page(
        path,
        "reproduce.html",
        result=result,
        tasks=[_task(name, result) for name in result["tasks"]],
        loss_chart=_losses(result["pretrain"]),
        times=_times(result["seconds"]),
        seconds=sum(result["seconds"].values()),
    )


def rows(name: str, result: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """Published figures of each model beside those measured here on `part` (headline or all), in per cent.

    Published figures stand beside the splits that the paper's table shows, and beside no others.
    """
    task = result["tasks"][name]
    comparable = part == ("headline" if task["headline"] and len(task["headline"]) < len(task["splits"]) else "all")
    published = {p.model: p for p in table_2() if p.task == name} if comparable else {}
    measured: dict[str, list[dict[str, Any]]] = {}
    for how, reports in (("frozen", result["probes"]), ("fine-tuned", result["finetune"])):
        for key, report in reports.items():
            task_name, _, model = key.partition(" ")
            scores = report["scores"].get("logistic", report["scores"]) if task_name == name else {}
            if part in scores:
                measured.setdefault(shown(model), []).append({"how": _how(model, how), **_measured(scores[part])})
    order = [m for m in SHOWN.values() if m in published or m in measured]
    return [
        {"model": model, "published": _published(published.get(model)), "here": measured.get(model, [])}
        for model in [*order, *(m for m in measured if m not in order)]
    ]


def _how(model: str, how: str) -> str:
    return f"pretrained here, {how}" if model == "pretrained" else how


def _published(row: Published | None) -> dict[str, str]:
    figures = {"paper": row and row.paper_f1, "ultrasam": row and row.ultrasam_f1}
    basis = row.basis if row else ""
    return {**{k: "" if v is None else f"{v:.1f}" for k, v in figures.items()}, "basis": basis}


def _measured(scores: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Each figure with its interval, in per cent."""

    def with_interval(measure: str) -> tuple[str, str]:
        value = scores[measure]
        return f"{100 * value['value']:.1f}", f"{100 * value['low']:.1f}–{100 * value['high']:.1f}"

    return {
        "paper": with_interval("paper.f1"),
        "ultrasam": with_interval("ultrasam.f1"),
        "balanced": with_interval("balanced_accuracy"),
        "auroc": with_interval("auroc"),
        "calibration": (f"{100 * scores['expected_calibration_error']:.1f}", ""),
    }


def _task(name: str, result: dict[str, Any]) -> dict[str, Any]:
    task = result["tasks"][name]
    probes = {_name(k.partition(" ")[2]): r for k, r in result["probes"].items() if k.startswith(f"{name} ")}
    curves = {model: report["label_efficiency"] for model, report in probes.items()}
    fractions = [f"{100 * p['fraction']:g} %" for p in next(iter(curves.values()), [])]
    lines = {model: [100 * p["balanced_accuracy"] for p in points] for model, points in curves.items()}
    several = f"all {len(task['splits'])} test parts" if len(task["splits"]) > 1 else "the test part"
    parts = [("headline", f"{', '.join(task['headline'])} alone, as in the paper"), ("all", several)]
    tables = [(title, rows(name, result, part)) for part, title in parts]
    return {
        **task,
        "title": NAMES[name],
        "tables": [(title, listed) for title, listed in tables if any(row["here"] for row in listed)],
        "curve": line_chart(lines, fractions, "balanced accuracy, % by share of labelled patients", size=REPORT),
        "tests": [
            {**t, "second": _name(t["second"])}
            for t in result["paired"]
            if t["task"] == name and t["head"] == "logistic"
        ],
        "confusions": [(model, report["scores"]["logistic"]["all"]["confusion"]) for model, report in probes.items()],
    }


def _name(model: str) -> str:
    return "pretrained here" if model == "pretrained" else shown(model)


def _times(seconds: dict[str, float]) -> list[dict[str, Any]]:
    """Steps of one kind together: corpus, leaks, pretrain, probe, finetune."""
    kinds = list(dict.fromkeys(name.split(" ")[0] for name in seconds))
    steps = {kind: [(n, s) for n, s in seconds.items() if n.split(" ")[0] == kind] for kind in kinds}
    return [{"kind": kind, "seconds": sum(s for _, s in of), "steps": of} for kind, of in steps.items()]


def _losses(pretrain: dict[str, Any]) -> str:
    """Training loss, and the held-out loss at the step nearest to each of its measurements."""
    log = read_log(Path(pretrain["log"]))
    steps = [line for line in log if "loss" in line]
    chosen = steps[:: max(1, len(steps) // 60)]
    held: list[float | None] = [None] * len(chosen)
    for line in log:
        if "held_out_loss" in line:
            nearest = min(range(len(chosen)), key=lambda i: abs(chosen[i]["step"] - line["step"]))
            held[nearest] = line["held_out_loss"]
    lines = {"training": [s["loss"] for s in chosen], "held out": held}
    return line_chart(lines, [str(s["step"]) for s in chosen], "masked loss", "step", REPORT)
