"""The forgetting budget: what a round may cost an organ, and what happens when it costs more.

The rule, in this order: accept the round if every organ's loss stays within (1 + budget) x its seed loss; else try
smaller shares of the round's change and take the first within the budget; else refuse, and the encoder stays as it was.
An organ that was over the budget before the round (a budget lowered later) must at least not get worse.

Averages of checkpoints undo forgetting without any old data:

    interpolate   (1 - a) * old + a * new: the seed and a federated encoder at release (WiSE-FT, arXiv:2109.01903)
    anchored      every so many rounds the encoder is averaged with an earlier one (SFA, arXiv:2501.05559)
    pulled        each round the encoder moves back towards the seed: an L2 penalty, decoupled as in AdamW
    ema           a running average beside the campaign, never sent to sites; a candidate at release

The middle two act on the server: no site needs to hold the seed. Sums are float64, results float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

Losses = Mapping[str, float]

ACCEPTED, INTERPOLATED, REFUSED = "accepted", "interpolated", "refused"


@dataclass(frozen=True)
class Decision:
    """What the gate did with a round, and why; stands in the ledger."""

    outcome: str  # accepted, interpolated, refused
    share: float  # of the round's change that is kept: 1, in between, 0
    reason: str  # empty if accepted
    worst: str  # organ with the largest loss over its seed loss, in the full round
    excess: float  # that organ's loss / seed loss - 1

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def excess(seed: Losses, now: Losses) -> dict[str, float]:
    """Loss over the seed's, minus 1, per organ; infinite where the loss is not a number."""
    return {o: now[o] / seed[o] - 1 if math.isfinite(now[o]) and seed[o] > 0 else math.inf for o in sorted(seed)}


def over(seed: Losses, before: Losses, now: Losses, budget: float) -> list[str]:
    """Organs that break the budget, worst first."""
    costs, had = excess(seed, now), excess(seed, before)
    broken = [organ for organ, cost in costs.items() if cost > max(budget, had[organ])]
    return sorted(broken, key=lambda organ: (-costs[organ], organ))


def decide(
    seed: Losses,
    before: Losses,
    now: Losses,
    budget: float,
    shares: Sequence[float],
    losses_at: Callable[[float], Losses],
) -> Decision:
    """Apply the rule. `losses_at(share)` measures the encoder that keeps this share of the round's change."""
    costs = excess(seed, now)
    worst = max(costs, key=lambda organ: (costs[organ], organ))
    broken = over(seed, before, now, budget)
    if not broken:
        return Decision(ACCEPTED, 1.0, "", worst, costs[worst])
    why = f"{', '.join(f'{o} {costs[o]:+.1%}' for o in broken)} against the seed; the budget is {budget:+.0%}"
    for share in shares:
        if not over(seed, before, losses_at(share), budget):
            return Decision(INTERPOLATED, share, f"{why}; kept {share:g} of the change", worst, costs[worst])
    tried = "; no smaller share keeps it" if shares else ""
    return Decision(REFUSED, 0.0, why + tried, worst, costs[worst])


Tensors = Mapping[str, Tensor]


def interpolate(old: Tensors, new: Tensors, alpha: float) -> dict[str, Tensor]:
    """`alpha` 0 gives exactly `old`, 1 exactly `new`; names and shapes are those of both."""
    if alpha in (0, 1):
        return {name: tensor.clone() for name, tensor in (new if alpha else old).items()}
    return {name: (tensor.double() * (1 - alpha) + new[name].double() * alpha).float() for name, tensor in old.items()}


def anchored(earlier: Tensors, now: Tensors, number: int, every: int, share: float) -> dict[str, Tensor]:
    """SFA: after each `every` rounds, `share` of the earlier encoder and the rest of this one; else this one."""
    return interpolate(earlier, now, 1 - share) if every and number % every == 0 else dict(now)


def pulled(seed: Tensors, now: Tensors, strength: float) -> dict[str, Tensor]:
    """The step of a decoupled L2 penalty towards the seed: `strength` 0 changes nothing, 1 gives the seed."""
    return interpolate(seed, now, 1 - strength) if strength else dict(now)


def ema(average: Tensors, now: Tensors, decay: float) -> dict[str, Tensor]:
    return interpolate(now, average, decay)
