"""Figures over seeds: means, 95 % intervals, which differences to the plain federation are noise, the targets."""

from __future__ import annotations

import json
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

MEASURES = (
    "old_loss",
    "new_loss",
    "old_auroc",
    "new_auroc",
    "old_loss_seed_decoder",
    "new_loss_seed_decoder",
    "bytes",
    "seconds",
)
COMPARED = MEASURES[:6]
REFERENCE, SEED = "federated", "seed only"
LONG = "federated, four times as long"
# The arms that the targets on learning are read for, and the pooled training with as many images.
LEARNERS = {
    "federated": "centralised",
    "federated, frozen seed": "centralised",
    "federated, replay 25 %": "centralised",
    "federated, IID": "centralised",
    LONG: "centralised, as many steps",
}
RIVALS = {"equal seconds a site": "alone, as long", "equal images": "alone"}  # single sites by what is equal

AREAS = {"old_auroc": "AUROC of breast", "new_auroc": "AUROC of ovary and lung frames"}

Runs = dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> what it measured


def interval(values: Sequence[float], level: float = 0.975) -> dict[str, Any]:
    """Mean, half the width of its t interval (95 % unless told), and the interval; none from a single value."""
    x = np.asarray(values, float)
    mean = float(x.mean())
    half = float(t.ppf(level, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else None
    return {"mean": mean, "half": half, "interval": None if half is None else [mean - half, mean + half]}


def report(results: list[dict[str, Any]], size: Any, model: ModelSettings, quick: bool) -> dict[str, Any]:
    """Per arm each measure with its interval, and paired differences to the reference arm, seed by seed."""
    by_arm: Runs = defaultdict(dict)
    for result in results:
        result["old_loss_seed_decoder"] = result["seed_decoder_losses"][OLD]
        result["new_loss_seed_decoder"] = float(np.mean([result["seed_decoder_losses"][organ] for organ in NEW]))
        by_arm[result["arm"]][result["seed"]] = result
    return {
        "quick": quick,
        "size": asdict(size),
        "model": model.model_dump(),
        "arms": {name: _arm(by_arm, name) for name in by_arm},
        "targets": targets(by_arm),
        "runs": results,
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
    """What was asked for, one value a seed; losses are refitted ones. Corrected for the number of learners (Bonferroni).

    The best single site of a measure is the one that is best on average over the seeds: it is chosen in sight of the
    figures, which favours staying alone.
    """
    values: dict[str, list[float]] = {}
    for arm, pooled in LEARNERS.items():
        values[f"{arm}: new-organ loss over '{pooled}' (at most +2 %)"] = ratios(by_arm, arm, pooled, "new_loss")
        values[f"{arm}: old-organ loss over the seed's (at most +5 %)"] = ratios(by_arm, arm, SEED, "old_loss")
        values[f"{arm}: share of the gap from seed to '{pooled}' that is closed"] = _closed(by_arm, arm, pooled)
        for measure, name in AREAS.items():
            values[f"{arm}: {name} minus the seed's (points)"] = _points(by_arm, arm, SEED, measure)
        for equal, prefix in RIVALS.items() if arm != LONG else (("equal seconds a site", RIVALS["equal images"]),):
            for measure in ("new_loss", *NEW, *AREAS):
                name, wanted = (
                    AREAS.get(measure, f"{measure.replace('_loss', ' organs')} loss"),
                    "above" if measure in AREAS else "below",
                )
                title = f"{arm}: {name} against the best single site, {equal} ({wanted} 0)"
                values[title] = _over_alone(by_arm, arm, measure, prefix)
    for equal, prefix in RIVALS.items():  # what the hospital that holds an organ gets from the others, on its own organ
        for organ in NEW:
            title = f"{REFERENCE}: {organ} loss over that of its own site alone, {equal} (it gains below 0)"
            values[title] = _over(by_arm, REFERENCE, f"{prefix}: {organ}", organ)
    for organ in NEW:
        title = f"{LONG}: {organ} loss over that of its own site alone, equal seconds a site (it gains below 0)"
        values[title] = _over(by_arm, LONG, f"alone: {organ}", organ)
    for pooled in ("centralised", "centralised, as many steps"):
        values[f"{pooled}: old-organ loss over the seed's"] = ratios(by_arm, pooled, SEED, "old_loss")
        values[f"{pooled}: new-organ loss over the seed's"] = ratios(by_arm, pooled, SEED, "new_loss")
    level = 1 - 0.025 / len(LEARNERS)
    return {name: interval(row, level) for name, row in values.items() if row}


def _closed(by_arm: Runs, arm: str, pooled: str) -> list[float]:
    """Share of the fall in new-organ loss from the seed to the pooled encoder that an arm reaches."""
    everyone = [by_arm.get(name, {}) for name in (arm, SEED, pooled)]
    seeds = sorted(set.intersection(*(set(runs) for runs in everyone)))
    rows = [[runs[s]["new_loss"] for runs in everyone] for s in seeds]
    return [(start - now) / (start - best) for now, start, best in rows if start > best]


def _value(run: dict[str, Any], measure: str) -> float:
    """A measure of a run, or the loss of an organ."""
    return float(run["losses"][measure] if measure in NEW else run[measure])


def _over(by_arm: Runs, top: str, bottom: str, measure: str) -> list[float]:
    seeds = sorted(set(by_arm.get(top, {})) & set(by_arm.get(bottom, {})))
    return [_value(by_arm[top][s], measure) / _value(by_arm[bottom][s], measure) - 1 for s in seeds]


def _points(by_arm: Runs, arm: str, other: str, measure: str) -> list[float]:
    seeds = sorted(set(by_arm.get(arm, {})) & set(by_arm.get(other, {})))
    return [_value(by_arm[arm][s], measure) - _value(by_arm[other][s], measure) for s in seeds]


def _over_alone(by_arm: Runs, arm: str, measure: str, prefix: str) -> list[float]:
    """A measure against the single site that is best at it: as a share for losses, in points for AUROC."""
    alone = {name: runs for name in (f"{prefix}: {site}" for site in NEW) if (runs := by_arm.get(name))}
    if len(alone) < len(NEW):
        return []
    is_area = measure in AREAS
    mean = {name: float(np.mean([_value(run, measure) for run in runs.values()])) for name, runs in alone.items()}
    best = (max if is_area else min)(mean, key=lambda name: mean[name])
    return (_points if is_area else _over)(by_arm, arm, best, measure)


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
        f"Losses with a decoder refitted alike for every arm. A star: the paired difference to '{REFERENCE}' over the",
        "seeds is more than noise (95 % t interval). Intervals of the targets are corrected for the number of arms.",
    ]
    lines += ["", "| target | measured |", "|---|---|"]
    lines += [f"| {name} | {_percent(value)}{_says(value)} |" for name, value in results["targets"].items()]
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


def _says(value: dict[str, Any]) -> str:
    """Where the interval holds 0 the difference is noise."""
    return "" if value["half"] is None or abs(value["mean"]) > value["half"] else " (noise)"


def write(results: dict[str, Any], out: Path) -> None:
    """continual-table.md, continual.svg and continual.json."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "continual.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "continual-table.md").write_text(text(results) + "\n")
    (out / "continual.svg").write_text(plot(results))
