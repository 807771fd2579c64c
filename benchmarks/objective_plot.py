"""The comparison of objectives as one picture: every seed's AUROC as a point, the mean as a bar, a panel a data set."""

from __future__ import annotations

from typing import Any

from continual_plot import INK, LINE, SOFT, line_to, text_at

MEASURES = {"bus-bra AUROC": "BUS-BRA", "mmotu-2d AUROC": "MMOTU-2D", "pocus AUROC": "POCUS"}
ROW, LEFT, PANEL, GAP, TOP, BOTTOM = 26, 250, 210, 40, 62, 44
LOW, HIGH, CHANCE = 0.4, 1.0, 0.5
COLOUR = "#0072b2"


def plot(report: dict[str, Any]) -> str:
    """An SVG of a report of benchmarks/objective.py."""
    arms = report["arms"]
    width, height = LEFT + len(MEASURES) * (PANEL + GAP), TOP + ROW * len(arms) + BOTTOM
    out = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' font-size='12'"
        f" font-family='system-ui, DejaVu Sans, sans-serif' fill='{INK}'>",
        "<title>AUROC of a frozen probe by recipe, at equal processor seconds</title>",
        f"<rect width='{width}' height='{height}' fill='white'/>",
        f"<text x='20' y='20' font-size='14' font-weight='600'>AUROC of a frozen probe, every recipe"
        f" {report['seconds']:.0f} processor seconds; a point a seed, the bar is the mean</text>",
        *(text_at(LEFT - 10, TOP + ROW * i + ROW / 2 + 4, name, "end") for i, name in enumerate(arms)),
    ]
    for number, (measure, title) in enumerate(MEASURES.items()):
        rows = [arm[measure] for arm in arms.values()]
        out += _panel(LEFT + number * (PANEL + GAP), title, rows)
    return "\n".join([*out, "</svg>"]) + "\n"


def _panel(start: float, title: str, rows: list[dict[str, Any]]) -> list[str]:
    bottom = TOP + ROW * len(rows)

    def x(value: float) -> float:
        return start + PANEL * (min(max(value, LOW), HIGH) - LOW) / (HIGH - LOW)

    out = [text_at(start, TOP - 10, title)]
    for tick in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        out.append(line_to(x(tick), TOP, x(tick), bottom, SOFT if tick == CHANCE else LINE, 1))
        out.append(text_at(x(tick), bottom + 16, f"{100 * tick:.0f}", "middle", SOFT))
    out.append(text_at(x(CHANCE), bottom + 32, "chance", "middle", SOFT))
    for i, row in enumerate(rows):
        y = TOP + ROW * i + ROW / 2
        out += [f"<circle cx='{x(v):.1f}' cy='{y:.1f}' r='3.5' fill='{COLOUR}' opacity='.55'/>" for v in row["runs"]]
        out.append(line_to(x(row["mean"]), y - 9, x(row["mean"]), y + 9, INK, 2))
    return out
