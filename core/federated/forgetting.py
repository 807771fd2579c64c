"""The forgetting budget: what a round may cost an organ, and what happens when it costs more.

The rule, in this order: accept the round if every organ stays within the budget; else try smaller shares of the round's
change and take the first within the budget; else refuse, and the encoder stays as it was. An organ is over the budget
when its loss is more than `Budget.loss` above the seed's, or when its probes fell by more than `Budget.probes` since the
seed. An organ that was over it before the round (a budget lowered later) must at least not get worse.

Averages of checkpoints undo forgetting without any old data:

    interpolate   (1 - a) * old + a * new: the seed and a federated encoder at release (WiSE-FT, arXiv:2109.01903)
    anchored      every so many rounds the encoder is averaged with an earlier one (SFA, arXiv:2501.05559)
    pulled        each round the encoder moves back towards the seed: an L2 penalty, decoupled as in AdamW
    ema           a running average beside the campaign, never sent to sites; a candidate at release

The middle two act on the server: no site needs to hold the seed. Sums are float64, results float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from usfmae.core.federated.forgetting_panel import Reading

Readings = Mapping[str, Reading]  # organ -> what the panel says of it

ACCEPTED, INTERPOLATED, REFUSED = "accepted", "interpolated", "refused"


@dataclass(frozen=True)
class Budget:
    """What an organ may lose since the seed."""

    loss: float  # refitted loss over the seed's, minus 1
    probes: float = 1.0  # fall of the mean of kNN and linear probe, as balanced accuracy; 1 allows any


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


def excess(seed: Readings, now: Readings) -> dict[str, float]:
    """Loss over the seed's, minus 1, per organ; infinite where the loss is not a number."""
    return {
        organ: now[organ].loss / seed[organ].loss - 1
        if math.isfinite(now[organ].loss) and seed[organ].loss > 0
        else math.inf
        for organ in sorted(seed)
    }


def fall(seed: Readings, now: Readings) -> dict[str, float]:
    """Fall of the probes since the seed, per organ; 0 where an organ has no classes."""
    pairs = {organ: (seed[organ].accuracy, now[organ].accuracy) for organ in sorted(seed)}
    return {o: 0.0 if was is None or accuracy is None else was - accuracy for o, (was, accuracy) in pairs.items()}


def over(seed: Readings, before: Readings, now: Readings, budget: Budget) -> list[str]:
    """Organs that break the budget, worst first."""
    costs, falls = excess(seed, now), fall(seed, now)
    costs_before, falls_before = excess(seed, before), fall(seed, before)
    broken = [
        organ
        for organ, cost in costs.items()
        if cost > max(budget.loss, costs_before[organ]) or falls[organ] > max(budget.probes, falls_before[organ])
    ]
    return sorted(broken, key=lambda organ: (-costs[organ], organ))


def within(seed: Readings, now: Readings, budget: Budget) -> bool:
    """Whether every organ keeps the budget, whatever was before."""
    return not over(seed, seed, now, budget)


def decide(
    seed: Readings,
    before: Readings,
    now: Readings,
    budget: Budget,
    smaller: Iterable[tuple[float, Readings]] = (),
) -> Decision:
    """Apply the rule. `smaller`: shares of the round's change with what is read at each, measured as they are taken."""
    costs = excess(seed, now)
    worst = max(costs, key=lambda organ: (costs[organ], organ))
    broken = over(seed, before, now, budget)
    if not broken:
        return Decision(ACCEPTED, 1.0, "", worst, costs[worst])
    why = f"{', '.join(_said(seed, now, organ) for organ in broken)} against the seed; {_limits(budget)}"
    tried = ""
    for share, readings in smaller:
        if not over(seed, before, readings, budget):
            return Decision(INTERPOLATED, share, f"{why}; kept {share:g} of the change", worst, costs[worst])
        tried = "; no smaller share keeps it"
    return Decision(REFUSED, 0.0, why + tried, worst, costs[worst])


def _said(seed: Readings, now: Readings, organ: str) -> str:
    fell = fall(seed, now)[organ]
    return f"{organ} {excess(seed, now)[organ]:+.1%}" + (f", probes {-100 * fell:+.0f} points" if fell else "")


def _limits(budget: Budget) -> str:
    points = f", probes {-100 * budget.probes:+.0f} points" if budget.probes < 1 else ""
    return f"the budget is {budget.loss:+.0%}{points}"


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
