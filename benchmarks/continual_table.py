"""Figures over seeds: means, 95 % intervals, which differences to the plain federation are noise, the targets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from continual_data import NEW, OLD
from continual_plot import plot
from scipy.stats import t

from usfmae.core.config import ModelSettings

MEASURES = ("old_loss", "old_loss_seed_decoder", "new_loss", "old_probe", "new_probe", "bytes", "seconds")
COMPARED = MEASURES[:5]
REFERENCE, SEED, TWICE = "federated", "seed only", ", twice the steps"
# The arms that the targets on learning are read for.
LEARNERS = (
    "federated", "replay 25 %", "budget 10 %", "FedAdam", "FedAvgM", f"federated{TWICE}",
    "federated, IID", "shared decoder, IID", "FedAdam, IID",
)  # fmt: skip

Runs = dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> what it measured


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean, half the width of its 95 % t interval, and the interval; none from a single value."""
    x = np.asarray(values, float)
    mean = float(x.mean())
    half = float(t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else None
    return {"mean": mean, "half": half, "interval": None if half is None else [mean - half, mean + half]}


def report(results: list[dict[str, Any]], size: Any, model: ModelSettings, quick: bool) -> dict[str, Any]:
    """Per arm each measure with its interval, and paired differences to the reference arm, seed by seed."""
    by_arm: Runs = defaultdict(dict)
    for result in results:
        result["old_loss_seed_decoder"] = result["seed_decoder_losses"][OLD]
        by_arm[result["arm"]][result["seed"]] = result
    return {
        "quick": quick,
        "size": asdict(size),
        "model": model.model_dump(),
        "arms": {name: _arm(by_arm, name) for name in by_arm},
        "targets": targets(by_arm),
    }


def _arm(by_arm: Runs, name: str) -> dict[str, Any]:
    runs, reference = by_arm[name], by_arm.get(REFERENCE, {})
    seeds = sorted(runs)
    shared = [s for s in seeds if s in reference]
    return {
        **{m: interval([runs[s][m] for s in seeds]) for m in MEASURES},
        "seeds": seeds,
        "difference": {m: _difference([runs[s][m] - reference[s][m] for s in shared]) for m in COMPARED if shared},
        "change": {m: interval(values) for m in ("old_loss", "new_loss") if (values := ratios(by_arm, name, SEED, m))},
        **{
            losses: {o: interval([runs[s][losses][o] for s in seeds]) for o in runs[seeds[0]][losses]}
            for losses in ("losses", "seed_decoder_losses")
        },
    }


def ratios(by_arm: Runs, top: str, bottom: str, measure: str) -> list[float]:
    """One arm's measure over another's, minus 1, seed by seed where both have run."""
    seeds = sorted(set(by_arm.get(top, {})) & set(by_arm.get(bottom, {})))
    return [by_arm[top][s][measure] / by_arm[bottom][s][measure] - 1 for s in seeds]


def _difference(values: list[float]) -> dict[str, Any]:
    bounds = interval(values)
    half = bounds["half"]
    noise = half is None or abs(bounds["mean"] or 0.0) <= half
    return {**bounds, "noise": noise}


def targets(by_arm: Runs) -> dict[str, Any]:
    """What was asked for, as ratios; one value a seed."""
    rows: dict[str, list[float]] = {}
    for arm in LEARNERS:
        other = "centralised, twice the steps" if arm.endswith(TWICE) else "centralised"
        limit = "+5 %" if "IID" in arm else "+15 %"
        rows[f"{arm}: new-organ loss over centralised (at most {limit})"] = ratios(by_arm, arm, other, "new_loss")
    for arm in (name for name in by_arm if not name.startswith(("alone", "seed only"))):
        rows[f"{arm}: old-organ loss over the seed's (at most +10 %)"] = ratios(by_arm, arm, SEED, "old_loss")
    for arm in (name for name in LEARNERS if "IID" not in name):
        for organ in NEW:
            rows[f"{arm}: {organ} over the best single site (below 0)"] = _over_alone(by_arm, arm, organ)
    return {name: interval(values) for name, values in rows.items() if values}


def _over_alone(by_arm: Runs, arm: str, organ: str) -> list[float]:
    """An organ's loss over that of the single site that has the lowest, at as many steps of every site."""
    more = TWICE if arm.endswith(TWICE) else ""
    alone = [by_arm.get(f"alone: {site}{more}", {}) for site in NEW]
    seeds = [s for s in sorted(by_arm.get(arm, {})) if all(s in runs for runs in alone)]
    return [by_arm[arm][s]["losses"][organ] / min(runs[s]["losses"][organ] for runs in alone) - 1 for s in seeds]


def text(results: dict[str, Any]) -> str:
    """The table in Markdown; a star marks a paired difference to the reference that is more than noise."""
    lines = [
        "| arm | seeds | " + " | ".join(m.replace("_", " ") for m in MEASURES) + " |",
        "|---" * (len(MEASURES) + 2) + "|",
    ]
    for name, arm in results["arms"].items():
        lines.append(f"| {name} | {len(arm['seeds'])} | " + " | ".join(_cell(m, arm) for m in MEASURES) + " |")
    lines += [
        "",
        f"A star: the paired difference to '{REFERENCE}' over the seeds is more than noise (95 % t interval).",
    ]
    lines += ["", "| target | measured |", "|---|---|"]
    lines += [f"| {name} | {_percent(value)} |" for name, value in results["targets"].items()]
    return "\n".join(lines)


def _cell(measure: str, arm: dict[str, Any]) -> str:
    value = arm[measure]
    if measure == "bytes":
        return f"{value['mean'] / 2**20:.1f} MiB"
    if measure == "seconds":
        return f"{value['mean']:.0f}"
    star = " *" if not arm["difference"].get(measure, {"noise": True})["noise"] else ""
    half = f" ± {value['half']:.3f}" if value["half"] is not None else ""
    return f"{value['mean']:.3f}{half}{star}"


def _percent(value: dict[str, Any]) -> str:
    return f"{value['mean']:+.1%}" + (f" ± {value['half']:.1%}" if value["half"] is not None else "")


def write(results: dict[str, Any], out: Path) -> None:
    """continual-table.md and continual.svg."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "continual-table.md").write_text(text(results) + "\n")
    (out / "continual.svg").write_text(plot(results))
