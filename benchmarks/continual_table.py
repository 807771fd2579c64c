"""Figures over seeds: means, 95 % intervals, which differences to the plain federation are noise, the targets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from continual_data import OLD
from scipy.stats import t

from usfmae.core.config import ModelSettings

MEASURES = ("old_loss", "old_loss_seed_decoder", "new_loss", "old_probe", "new_probe", "bytes", "seconds")
COMPARED = MEASURES[:5]
REFERENCE = "federated"


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and half the width of its 95 % t interval; no interval from a single value."""
    x = np.asarray(values, float)
    half = float(t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else None
    return {"mean": float(x.mean()), "half": half}


def report(results: list[dict[str, Any]], size: Any, model: ModelSettings, quick: bool) -> dict[str, Any]:
    """Per arm each measure with its interval, and paired differences to the reference arm, seed by seed."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for result in results:
        result["old_loss_seed_decoder"] = result["seed_decoder_losses"][OLD]
        by_arm[result["arm"]][result["seed"]] = result
    reference = by_arm.get(REFERENCE, {})
    arms = {}
    for name, runs in by_arm.items():
        shared = sorted(set(runs) & set(reference))
        arms[name] = {
            **{m: interval([runs[s][m] for s in sorted(runs)]) for m in MEASURES},
            "seeds": sorted(runs),
            "difference": {m: _difference([runs[s][m] - reference[s][m] for s in shared]) for m in COMPARED if shared},
            "losses": {
                o: interval([runs[s]["losses"][o] for s in sorted(runs)]) for o in next(iter(runs.values()))["losses"]
            },
            "seed_decoder_losses": {
                o: interval([runs[s]["seed_decoder_losses"][o] for s in sorted(runs)])
                for o in next(iter(runs.values()))["seed_decoder_losses"]
            },
        }
    return {
        "quick": quick,
        "size": asdict(size),
        "model": model.model_dump(),
        "arms": arms,
        "targets": targets(by_arm),
    }


def _difference(values: list[float]) -> dict[str, Any]:
    found = interval(values)
    half = found["half"]
    noise = half is None or abs(found["mean"] or 0.0) <= half
    return {**found, "noise": noise}


def targets(by_arm: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """The issue's targets as ratios, one value a seed."""

    def ratios(top: str, bottom: str, measure: str) -> list[float]:
        seeds = sorted(set(by_arm.get(top, {})) & set(by_arm.get(bottom, {})))
        return [by_arm[top][s][measure] / by_arm[bottom][s][measure] - 1 for s in seeds]

    found: dict[str, Any] = {
        "organ split: new-organ loss over centralised (at most +15 %)": ratios("federated", "centralised", "new_loss"),
        "IID split: new-organ loss over centralised (at most +5 %)": ratios(
            "federated, IID", "centralised", "new_loss"
        ),
        **{
            f"old-organ loss over the seed's, {arm} (at most +10 %)": ratios(arm, "seed only", "old_loss")
            for arm in ("federated", "replay 5 %", "replay 25 %", "seed interpolation 0.5", "centralised")
        },
        "old-organ loss over the seed's, centralised, with the seed's decoder": ratios(
            "centralised", "seed only", "old_loss_seed_decoder"
        ),
    }
    alone = [name for name in by_arm if name.startswith("alone:")]
    for organ in next(iter(by_arm["federated"].values()))["losses"] if alone and "federated" in by_arm else ():
        for s in sorted(by_arm["federated"]):
            if any(s not in by_arm[name] for name in alone):
                continue
            best = min(by_arm[name][s]["losses"][organ] for name in alone)
            key = f"{organ}: federated over the best single site (below 0)"
            found.setdefault(key, []).append(by_arm["federated"][s]["losses"][organ] / best - 1)
    return {name: interval(values) for name, values in found.items() if values}


def text(found: dict[str, Any]) -> str:
    """The table in Markdown; a star marks a paired difference to the reference that is more than noise."""
    lines = [
        "| arm | seeds | " + " | ".join(m.replace("_", " ") for m in MEASURES) + " |",
        "|---" * (len(MEASURES) + 2) + "|",
    ]
    for name, arm in found["arms"].items():
        lines.append(f"| {name} | {len(arm['seeds'])} | " + " | ".join(_cell(m, arm) for m in MEASURES) + " |")
    lines += [
        "",
        f"A star: the paired difference to '{REFERENCE}' over the seeds is more than noise (95 % t interval).",
    ]
    lines += ["", "| target | measured |", "|---|---|"]
    lines += [f"| {name} | {_percent(value)} |" for name, value in found["targets"].items()]
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


def write(found: dict[str, Any], out: Path) -> None:
    """continual-table.md and continual.svg."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "continual-table.md").write_text(text(found) + "\n")
    (out / "continual.svg").write_text(plot(found))


def plot(found: dict[str, Any]) -> str:
    """Old-organ against new-organ loss, each over the seed's, as an SVG; lower left is better on both."""
    seed = found["arms"].get("seed only")
    if seed is None:
        return "<svg xmlns='http://www.w3.org/2000/svg'/>"
    rows = {
        name: (
            arm["new_loss"]["mean"] / seed["new_loss"]["mean"] - 1,
            arm["old_loss"]["mean"] / seed["old_loss"]["mean"] - 1,
        )
        for name, arm in found["arms"].items()
    }
    width, row = 760, 22
    low, high = min(0.0, *(min(v) for v in rows.values())), max(0.0, *(max(v) for v in rows.values()))
    scale = 460 / max(high - low, 1e-6)

    def place(value: float) -> float:
        return 230 + (value - low) * scale

    height = 60 + row * len(rows)
    out = [f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' font-family='sans-serif'>"]
    out.append("<title>Held-out masked loss against the seed's, mean over seeds: old organ and new organs</title>")
    out.append(f"<rect width='{width}' height='{height}' fill='white'/>")
    out.append(f"<line x1='{place(0):.1f}' x2='{place(0):.1f}' y1='30' y2='{height - 20}' stroke='#999'/>")
    out.append(f"<text x='{place(0):.1f}' y='{height - 6}' text-anchor='middle'>the seed's loss</text>")
    out.append("<circle cx='20' cy='16' r='5' fill='#b3442c'/><text x='30' y='20'>old organ</text>")
    out.append("<circle cx='110' cy='16' r='5' fill='#2c6fb3'/><text x='120' y='20'>new organs</text>")
    for index, (name, (new, old)) in enumerate(rows.items()):
        y = 45 + row * index
        out.append(f"<text x='220' y='{y + 4}' text-anchor='end'>{name}</text>")
        for value, colour in ((old, "#b3442c"), (new, "#2c6fb3")):
            out.append(
                f"<circle cx='{place(value):.1f}' cy='{y}' r='5' fill='{colour}'><title>{value:+.1%}</title></circle>"
            )
    return "\n".join([*out, "</svg>"]) + "\n"
