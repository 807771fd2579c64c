"""The experiment as one picture: what each arm learned of new organs and lost of the old one, with intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ROW, LEFT, PANEL, GAP, TOP, BOTTOM = 20, 236, 300, 40, 74, 46
# Okabe and Ito's colours, which colour-blind people tell apart; shapes differ as well.
KINDS = {
    "centralised": ("#000000", "one place, all data"),
    "alone": ("#999999", "one site alone"),
    "federated": ("#0072b2", "federated"),
}
TARGET = 0.05  # largest rise of the old organ's loss
INK, SOFT, LINE, LIMIT = "#1c2430", "#5b6675", "#dde3ea", "#d55e00"


def kind_of(name: str) -> str:
    return next((kind for kind in ("centralised", "alone") if name.startswith(kind)), "federated")


def plot(results: dict[str, Any]) -> str:
    """An SVG: a row an arm, new organs on the left, the old organ on the right, both against the seed."""
    arms = {name: arm["change"] for name, arm in results["arms"].items() if arm.get("change") and name != "seed only"}
    width, height = LEFT + 2 * PANEL + GAP + 20, TOP + ROW * len(arms) + BOTTOM
    out = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' font-size='12'"
        f" font-family='system-ui, DejaVu Sans, sans-serif' fill='{INK}'>",
        "<title>Held-out masked loss against the seed's, by arm: mean over seeds and 95 % interval</title>",
        f"<rect width='{width}' height='{height}' fill='white'/>",
        f"<text x='{LEFT}' y='18' font-size='14' font-weight='600'>Held-out masked loss against the seed's</text>",
        *_legend(LEFT, 38),
        *(text_at(LEFT - 10, TOP + ROW * i + ROW / 2 + 4, name, "end") for i, name in enumerate(arms)),
    ]
    for start, measure, title in ((LEFT, "new_loss", "new organs"), (LEFT + PANEL + GAP, "old_loss", "old organ")):
        out += _panel(start, title, {name: change[measure] for name, change in arms.items()}, measure == "old_loss")
    return "\n".join([*out, "</svg>"]) + "\n"


def _panel(start: float, title: str, values: dict[str, dict[str, Any]], limited: bool) -> list[str]:
    """One measure: axis in per cent, a whisker and a mark an arm; marks beyond the axis become arrows."""
    ends = [v["mean"] for v in values.values()]
    low, high = min(-0.02, *ends) - 0.02, min(max(TARGET, *ends) + 0.02, 0.45)
    bottom = TOP + ROW * len(values)

    def x(value: float) -> float:
        return start + PANEL * (min(max(value, low), high) - low) / (high - low)

    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / s <= 8)
    ticks = [k * step for k in range(int(low / step) - 1, int(high / step) + 1) if low <= k * step <= high]
    out = [text_at(start, TOP - 8, f"{title}, change in %; left is better")]
    for tick in ticks:
        shade, wide = (SOFT, 1.5) if abs(tick) < 1e-9 else (LINE, 1)
        out.append(line_to(x(tick), TOP, x(tick), bottom, shade, wide))
        out.append(text_at(x(tick), bottom + 16, f"{100 * tick:+.0f}" if abs(tick) > 1e-9 else "0", "middle", SOFT))
    out.append(text_at(x(0), bottom + 32, "the seed", "middle", SOFT))
    if limited:
        out.append(line_to(x(TARGET), TOP, x(TARGET), bottom, LIMIT, 1.5, "4 3"))
        out.append(text_at(x(TARGET) + 4, bottom + 32, "target +5 %", "start", LIMIT))
    for i, (name, value) in enumerate(values.items()):
        out += _arm(name, value, TOP + ROW * i + ROW / 2, x, high)
    return out


def _arm(name: str, value: dict[str, Any], y: float, x: Callable[[float], float], high: float) -> list[str]:
    colour = KINDS[kind_of(name)][0]
    half, mean = value["half"] or 0.0, value["mean"]
    whisker = line_to(x(mean - half), y, x(mean + half), y, colour, 1.5)
    if mean > high:
        return [text_at(x(high) - 6, y + 4, f"{100 * mean:+.0f} % →", "end", colour)]
    return [whisker, _mark(kind_of(name), x(mean), y, f"{name}: {mean:+.1%}")]


def _mark(kind: str, x: float, y: float, title: str) -> str:
    colour = KINDS[kind][0]
    shapes = {
        "centralised": f"<rect x='{x - 4:.1f}' y='{y - 4:.1f}' width='8' height='8' fill='{colour}'>",
        "alone": f"<path d='M{x:.1f},{y - 5:.1f} l5,9 h-10 z' fill='{colour}'>",
        "federated": f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4.5' fill='{colour}'>",
    }
    return f"{shapes[kind]}<title>{title}</title></{shapes[kind][1:].split()[0]}>"


def _legend(start: float, y: float) -> list[str]:
    out = []
    for i, (kind, (_, text)) in enumerate(KINDS.items()):
        out += [_mark(kind, start + 6 + 150 * i, y - 4, text), text_at(start + 18 + 150 * i, y, text)]
    return [*out, text_at(start + 18 + 450, y, "bar: 95 % interval over seeds", "start", SOFT)]


def text_at(x: float, y: float, text: str, anchor: str = "start", colour: str = INK) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{colour}'>{text}</text>"


def line_to(x1: float, y1: float, x2: float, y2: float, colour: str, width: float, dash: str = "") -> str:
    return (
        f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}' stroke-width='{width}'"
        f" stroke-dasharray='{dash or 'none'}'/>"
    )
