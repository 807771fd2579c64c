"""Averages of checkpoints: what undoes forgetting without any old data.

    interpolate   (1 - a) * old + a * new: the seed and a federated encoder at release (WiSE-FT, arXiv:2109.01903)
    Anchor        every so many rounds the encoder is averaged with an earlier one (SFA, arXiv:2501.05559)
    Pull          each round the encoder moves back towards the seed: an L2 penalty, decoupled as in AdamW
    Ema           a running average beside the campaign, never sent to sites; a candidate at release

Pull and Anchor act on the server: no site needs to hold the seed. Sums are float64, results float32.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

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
