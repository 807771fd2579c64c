"""One probe or one fine-tuning on one page: scores with intervals, few labels, confusion matrices, paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usfmae.core.report.page import write_page
from usfmae.core.web.chart import REPORT, line_chart

# measure -> what it is called, and what it says
MEASURES = {
    "paper.f1": (
        "F1, paper view",
        "F1 of the positive class; micro average over more than two classes, as USF-MAE reports",
    ),
    "ultrasam.f1": ("F1, UltraSam view", "macro F1, as UltraSam reports"),
    "balanced_accuracy": ("balanced accuracy", "mean recall of the classes"),
    "auroc": ("AUROC", "of all splits' predictions together"),
    "auroc_by_split": ("AUROC by split", "mean over the splits"),
}
HEADS = {"logistic": "logistic regression", "knn": "nearest neighbours", "": "fine-tuned"}


@dataclass(frozen=True)
class ScoredModel:
    """A row of scores: which model, read how, on which test parts."""

    model: str
    head: str
    part: str
    scores: Mapping[str, Any]


def write_probe(path: Path, result: Mapping[str, Any]) -> None:
    """`report.html` of `usfmae probe`; `result` is its report.json."""
    scored = [
        ScoredModel(_short(report["model"]), HEADS[head], part, scores)
        for report in result["models"]
        for head, parts in report["scores"].items()
        for part, scores in parts.items()
    ]
    _write(path, "Frozen features", result["task"], scored, _curve(result["models"]), **_standing(result))


def write_finetune(path: Path, report: Mapping[str, Any]) -> None:
    """`report.html` of `usfmae finetune`; `report` is its report.json."""
    name = _short(report["model"])
    scored = [ScoredModel(name, HEADS[""], part, scores) for part, scores in report["scores"].items()]
    _write(path, "Fine-tuning", report["task"], scored, "", runs=report["runs"])


def _write(
    path: Path, title: str, task: Mapping[str, Any], scored: Sequence[ScoredModel], curve: str, **more: Any
) -> None:
    values = {"tests": (), "trained_on_it": {}, "runs": (), **more}
    write_page(path, "bench.html", title=title, task=task, scored=scored, measures=MEASURES, curve=curve, **values)


def _standing(result: Mapping[str, Any]) -> dict[str, Any]:
    tests = [{**test, "first": _short(test["first"]), "second": _short(test["second"])} for test in result["paired"]]
    return {
        "tests": tests,
        "trained_on_it": {_short(name): verdict for name, verdict in result["trained_on_it"].items()},
    }


def _curve(reports: Sequence[Mapping[str, Any]]) -> str:
    """Balanced accuracy by the share of labelled patients; empty where that was not measured."""
    curves = {_short(report["model"]): report["label_efficiency"] for report in reports if report["label_efficiency"]}
    if not curves:
        return ""
    shares = [f"{100 * point['fraction']:g} %" for point in next(iter(curves.values()))]
    lines = {name: [100 * point["balanced_accuracy"] for point in points] for name, points in curves.items()}
    return line_chart(lines, shares, "balanced accuracy, % by share of labelled patients", size=REPORT)


def _short(spec: str) -> str:
    """A model's name without the folders of its file."""
    kind, colon, rest = spec.rpartition(":")
    return f"{kind}{colon}{Path(rest).name}"
