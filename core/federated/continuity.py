"""How far one tensor of the shared encoder may go in a round: what sites refuse of the next encoder is never merged.

A site compares each tensor that comes with the one it trained on last, and refuses a leap. Did the aggregator merge
leaps, one site could put its whole update into one small tensor, or into one that is fixed, and every site would refuse
the next encoder: the campaign would stand still. So both sides hold to this file. It needs no look at one site's update,
and so holds in sealed rounds too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FIXED = ("pos_embed",)  # never trained: an update that moves it says nothing about images
UNTOLD = 1.0  # norm up to which a tensor may grow by any factor: a bias starts at zero
ROOM = 0.97  # share of what is allowed that is used: a packed step and sums in float32 are not exact


@dataclass(frozen=True)
class Moved:
    """Norms of one tensor of a merge."""

    before: float
    step: float
    after: float


def continues(before: float, after: float, ratio: float) -> bool:
    """Whether a tensor of norm `after` may follow one of norm `before`: no leap by more than `ratio`, up or down."""
    return max(before, after) <= UNTOLD or before / ratio <= after <= before * ratio


def longest_step(before: float, ratio: float) -> float:
    """Length of a step that leads from a tensor of norm `before` to one that continues it, whatever its direction."""
    return ROOM * (before * (1 - 1 / ratio) if before > UNTOLD else max(UNTOLD, before * ratio) - before)


def cuts(tensors: Mapping[str, Moved], ratio: float) -> dict[str, float]:
    """What the steps of the tensors that leap are to be multiplied by; empty where none does."""
    return {
        name: longest_step(moved.before, ratio) / moved.step
        for name, moved in tensors.items()
        if not continues(moved.before, moved.after, ratio) and moved.step > longest_step(moved.before, ratio)
    }
