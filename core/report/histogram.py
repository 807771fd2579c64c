"""A histogram as inline SVG, in the style of the line chart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

BINS = 25
WIDTH, HEIGHT, BASE, TOP = 320, 130, 106, 22


def histogram(values: Sequence[float] | NDArray[np.float32], low: float, high: float, title: str) -> Markup:
    """Counts of values in equal bins of low..high, with the median marked."""
    counts, _ = np.histogram(np.clip(values, low, high), BINS, (low, high))
    tallest, step = max(1, int(counts.max())), WIDTH / BINS
    bars = [
        f'<rect x="{i * step + 1:.1f}" y="{BASE - (BASE - TOP) * n / tallest:.1f}" width="{step - 2:.1f}" '
        f'height="{(BASE - TOP) * n / tallest:.1f}" fill="var(--c0)"><title>{n} scans</title></rect>'
        for i, n in enumerate(counts)
    ]
    middle = f"median {np.median(values):.3g} of {len(values)} scans" if len(values) else "no values"
    return Markup(  # noqa: S704
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: {middle}" class="chart">'
        f'<text x="0" y="10">{escape(title)}</text>{"".join(bars)}'
        f'<line class="grid-line" x1="0" x2="{WIDTH}" y1="{BASE}" y2="{BASE}"/>'
        f'<text x="0" y="{BASE + 14}">{low:g}</text>'
        f'<text x="{WIDTH / 2}" y="{BASE + 14}" text-anchor="middle">{middle}</text>'
        f'<text x="{WIDTH}" y="{BASE + 14}" text-anchor="end">{high:g}</text></svg>'
    )
